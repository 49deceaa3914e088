// Preloaded into a device's process, it makes reads, writes or syncs of one file fail, or moves
// less than was asked for. It begins when SMART_FAULTS_TRIGGER exists, lets SMART_FAULTS_AFTER
// calls pass first, and puts a byte into the trigger for each call that it spoiled.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static const char* setting(const char* name) {
  const char* value = getenv(name);
  return value != NULL ? value : "";
}

// Whether a call of this kind on this file is to be spoiled.
static int spoiled(const char* call, int fd) {
  static long passed = 0;
  const char* wanted = setting("SMART_FAULTS_FILE");
  char link[64], path[4096];
  if (*wanted == 0 || strcmp(setting("SMART_FAULTS_CALL"), call) != 0) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t n = readlink(link, path, sizeof path - 1);
  if (n <= 0) return 0;
  path[n] = 0;
  if (strcmp(path, wanted) != 0) return 0;
  pthread_mutex_lock(&lock);
  const int trigger = open(setting("SMART_FAULTS_TRIGGER"), O_WRONLY | O_APPEND | O_CLOEXEC);
  int now = 0;
  if (trigger >= 0) {
    now = passed++ >= atol(setting("SMART_FAULTS_AFTER"));
    if (now && write(trigger, "x", 1) != 1) abort();
    close(trigger);
  }
  pthread_mutex_unlock(&lock);
  return now;
}

// The error to give; 0 asks for short transfers.
static int error_code(void) { return atoi(setting("SMART_FAULTS_ERRNO")); }

// Half of it, in whole pages; a single page cannot be halved where O_DIRECT is in use.
static size_t less(size_t n) { return n > 4096 ? n / 2 / 4096 * 4096 : n; }

ssize_t pread64(int fd, void* data, size_t n, off64_t offset) {
  static ssize_t (*real)(int, void*, size_t, off64_t);
  if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, "pread64");
  if (!spoiled("read", fd)) return real(fd, data, n, offset);
  if (error_code() == 0) return real(fd, data, less(n), offset);
  errno = error_code();
  return -1;
}

ssize_t pread(int fd, void* data, size_t n, off_t offset) { return pread64(fd, data, n, offset); }

ssize_t pwrite64(int fd, const void* data, size_t n, off64_t offset) {
  static ssize_t (*real)(int, const void*, size_t, off64_t);
  if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, "pwrite64");
  if (!spoiled("write", fd)) return real(fd, data, n, offset);
  if (error_code() == 0) return real(fd, data, less(n), offset);
  errno = error_code();
  return -1;
}

ssize_t pwrite(int fd, const void* data, size_t n, off_t offset) {
  return pwrite64(fd, data, n, offset);
}

int fdatasync(int fd) {
  static int (*real)(int);
  if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, "fdatasync");
  if (!spoiled("sync", fd)) return real(fd);
  errno = error_code();
  return -1;
}
