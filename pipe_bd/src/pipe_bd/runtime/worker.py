"""One rank's process: ``python -m pipe_bd.runtime.worker JOB ANSWER``, started by the launcher."""

from pipe_bd.runtime.spawn import main

if __name__ == "__main__":
    main()
