// Preloaded into a device, it notes every write and sync of its state, so that a test can make the
// disk that a loss of power would have left: SMART_SHIM_LOG names the log, the process's number is
// added. A record: time (ns), kind (0 write, 1 sync), offset, length, then the bytes.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -2;

static int log_file(void) {
  if (log_fd == -2) {
    const char* prefix = getenv("SMART_SHIM_LOG");
    char name[4096];
    log_fd = -1;
    if (prefix != NULL) {
      snprintf(name, sizeof name, "%s.%d", prefix, (int)getpid());
      log_fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
  }
  return log_fd;
}

static int is_state(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t n = readlink(link, path, sizeof path - 1);
  if (n <= 0) return 0;
  path[n] = 0;
  return strstr(path, "/state.smart") != NULL;
}

static void note(uint64_t kind, uint64_t offset, const void* data, uint64_t length) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  const uint64_t head[4] = {(uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec, kind,
                            offset, length};
  if (write(log_file(), head, sizeof head) != (ssize_t)sizeof head) abort();
  for (uint64_t done = 0; done < length;) {
    const ssize_t put = write(log_file(), (const char*)data + done, length - done);
    if (put <= 0) abort();
    done += (uint64_t)put;
  }
}

// A write is noted before it is done, a sync after: what is called durable was.
ssize_t pwrite64(int fd, const void* data, size_t n, off64_t offset) {
  static ssize_t (*real)(int, const void*, size_t, off64_t);
  if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, "pwrite64");
  if (log_file() >= 0 && is_state(fd)) {
    pthread_mutex_lock(&lock);
    note(0, (uint64_t)offset, data, n);
    pthread_mutex_unlock(&lock);
  }
  return real(fd, data, n, offset);
}

ssize_t pwrite(int fd, const void* data, size_t n, off_t offset) {
  return pwrite64(fd, data, n, offset);
}

int fdatasync(int fd) {
  static int (*real)(int);
  if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, "fdatasync");
  const int noted = log_file() >= 0 && is_state(fd);
  uint64_t before = 0;
  if (noted) {
    // Writes that begin while the sync runs are not covered by it.
    pthread_mutex_lock(&lock);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    before = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    pthread_mutex_unlock(&lock);
  }
  const int code = real(fd);
  if (noted && code == 0) {
    pthread_mutex_lock(&lock);
    note(1, before, NULL, 0);
    pthread_mutex_unlock(&lock);
  }
  return code;
}
