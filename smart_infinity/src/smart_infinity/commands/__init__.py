"""The verbs of the command line, a module or two each; heavy imports happen when one runs."""
