// Loaded into a child by LD_PRELOAD: records, in their order, all changes that the process makes to
// files under SHIM_ROOT, so that a test can work out what a loss of power at any moment would have
// left (power.py); and fails or shortens such calls on demand. System calls are made directly, and
// fsync and fdatasync only take SHIM_SYNC_US: what they promise is judged from the record. io_uring
// makes no calls that could be seen here: whoever records refuses it (SHORTHAUL_IO=posix).
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { kWrite = 1, kEnd, kSync, kTruncate, kCreate, kRename, kUnlink, kMkdir };
enum { kPage = 4096, kPath = 1024 };

struct Event {
  uint32_t kind, path_bytes;  // of one path, or two with a zero between them
  uint64_t time_ns;           // CLOCK_MONOTONIC
  uint64_t inode, parent;     // parent: the folder's, where a name changes
  uint64_t offset, bytes;     // of data; offset: of kEnd the number of the event that has ended
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static const char* root;
static size_t root_bytes;
static int record = -1;
static uint64_t events;
static int shortened;
static long sync_us;
static uint64_t transfers;
// Changes [fail_first, fail_first + fail_count) from the call of shim_fail on give fail_error.
static long changes, fail_first = -1, fail_count;
static int fail_error;

__attribute__((constructor)) static void start(void) {
  root = getenv("SHIM_ROOT");
  if (!root) return;
  root_bytes = strlen(root);
  shortened = getenv("SHIM_SHORT") != NULL;
  if (getenv("SHIM_SYNC_US")) sync_us = atol(getenv("SHIM_SYNC_US"));
  const char* to = getenv("SHIM_RECORD");
  if (to) {
    record = (int)syscall(SYS_openat, AT_FDCWD, to,
                          O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    if (record < 0) _exit(99);
  }
}

// For ctypes. first < 0: never again.
void shim_fail(long first, long count, int error) {
  pthread_mutex_lock(&mutex);
  changes = 0;
  fail_first = first;
  fail_count = count;
  fail_error = error;
  pthread_mutex_unlock(&mutex);
}
long shim_changes(void) { return changes; }

static int below_root(const char* path) {
  return root && strncmp(path, root, root_bytes) == 0 &&
         (path[root_bytes] == '/' || path[root_bytes] == '\0');
}

static int name_of(int fd, char* path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t got = syscall(SYS_readlinkat, AT_FDCWD, link, path, kPath - 1);
  path[got > 0 ? got : 0] = '\0';
  return got > 0;
}

// Whether the descriptor is of a file or folder of ours.
static int ours(int fd, struct stat* found) {
  char path[kPath];
  if (!root || fstat(fd, found) != 0) return 0;
  if (!S_ISREG(found->st_mode) && !S_ISDIR(found->st_mode)) return 0;
  return name_of(fd, path) && below_root(path);
}

static int absolute(int folder, const char* path, char* out) {
  if (path[0] == '/') {
    snprintf(out, kPath, "%s", path);
  } else {
    char base[kPath];
    if (folder == AT_FDCWD) {
      if (!getcwd(base, sizeof base)) return 0;
    } else if (!name_of(folder, base)) {
      return 0;
    }
    if (strlen(base) + strlen(path) + 2 > kPath) return 0;
    strcpy(out, base);
    strcat(out, "/");
    strcat(out, path);
  }
  return below_root(out);
}

static uint64_t inode_of(const char* path) {
  struct stat found;
  return lstat(path, &found) == 0 ? found.st_ino : 0;
}
static uint64_t parent_of(const char* path) {
  char folder[kPath];
  snprintf(folder, sizeof folder, "%s", path);
  char* slash = strrchr(folder, '/');
  if (slash) *slash = '\0';
  return inode_of(folder);
}

// Under the mutex. The record survives the process, not the machine: nothing here is synced.
static uint64_t note(struct Event event, const char* paths, const void* data) {
  if (record < 0) return 0;
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  event.time_ns = (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
  struct iovec parts[3] = {{&event, sizeof event},
                           {(void*)paths, event.path_bytes},
                           {(void*)data, data ? event.bytes : 0}};
  for (int i = 0; i < 3;) {
    if (parts[i].iov_len == 0) {
      ++i;
      continue;
    }
    const ssize_t done = syscall(SYS_writev, record, parts + i, 3 - i);
    if (done < 0) _exit(99);
    for (size_t left = (size_t)done; left > 0; ++i) {
      const size_t part = left < parts[i].iov_len ? left : parts[i].iov_len;
      parts[i].iov_base = (char*)parts[i].iov_base + part;
      parts[i].iov_len -= part;
      left -= part;
      if (parts[i].iov_len > 0) break;
    }
  }
  return events++;
}

static void note_name(uint32_t kind, const char* path, uint64_t inode) {
  note((struct Event){.kind = kind,
                      .path_bytes = (uint32_t)strlen(path),
                      .inode = inode,
                      .parent = parent_of(path)},
       path, NULL);
}

static void ended(uint64_t number) {
  pthread_mutex_lock(&mutex);
  note((struct Event){.kind = kEnd, .offset = number}, NULL, NULL);
  pthread_mutex_unlock(&mutex);
}

// Under the mutex: whether this change is to fail.
static int fails(void) {
  const long number = changes++;
  if (fail_first < 0 || number < fail_first || number >= fail_first + fail_count) return 0;
  errno = fail_error;
  return 1;
}

static ssize_t put(int fd, const void* data, size_t bytes, off_t offset, int at) {
  struct stat found;
  if (!ours(fd, &found)) {
    return at ? syscall(SYS_pwrite64, fd, data, bytes, offset)
              : syscall(SYS_write, fd, data, bytes);
  }
  pthread_mutex_lock(&mutex);
  const uint64_t transfer = ++transfers;
  if (shortened && transfer % 5 == 0) {
    pthread_mutex_unlock(&mutex);
    errno = EINTR;
    return -1;
  }
  const int failing = fails();
  // A disk that fills up takes the first part of a large write.
  const int part = bytes > kPage && (shortened || (failing && fail_error == ENOSPC));
  if (failing && !part) {
    pthread_mutex_unlock(&mutex);
    errno = fail_error;
    return -1;
  }
  if (part) bytes = (bytes / 2 + kPage - 1) / kPage * kPage;
  if (!at) {
    const int flags = (int)syscall(SYS_fcntl, fd, F_GETFL);
    const int appending = (flags & O_APPEND) && fstat(fd, &found) == 0;  // under the mutex
    offset = appending ? found.st_size : syscall(SYS_lseek, fd, 0, SEEK_CUR);
  }
  const uint64_t number = note(
      (struct Event){
          .kind = kWrite, .inode = found.st_ino, .offset = (uint64_t)offset, .bytes = bytes},
      NULL, data);
  if (!at) {  // appended: order and place are one
    const ssize_t done = syscall(SYS_write, fd, data, bytes);
    note((struct Event){.kind = kEnd, .offset = number}, NULL, NULL);
    pthread_mutex_unlock(&mutex);
    return done;
  }
  pthread_mutex_unlock(&mutex);
  const ssize_t done = syscall(SYS_pwrite64, fd, data, bytes, offset);
  const int error = errno;
  ended(number);
  errno = error;
  return done;
}

ssize_t write(int fd, const void* data, size_t bytes) { return put(fd, data, bytes, 0, 0); }
ssize_t pwrite(int fd, const void* data, size_t bytes, off_t offset) {
  return put(fd, data, bytes, offset, 1);
}
ssize_t pwrite64(int fd, const void* data, size_t bytes, off64_t offset) {
  return put(fd, data, bytes, offset, 1);
}
// Short, as they may be.
ssize_t writev(int fd, const struct iovec* parts, int count) {
  struct stat found;
  if (!ours(fd, &found)) return syscall(SYS_writev, fd, parts, count);
  return put(fd, parts[0].iov_base, parts[0].iov_len, 0, 0);
}
ssize_t pwritev(int fd, const struct iovec* parts, int count, off_t offset) {
  struct stat found;
  if (!ours(fd, &found)) return syscall(SYS_pwritev, fd, parts, count, offset, 0);
  return put(fd, parts[0].iov_base, parts[0].iov_len, offset, 1);
}
ssize_t pwritev64(int fd, const struct iovec* parts, int count, off64_t offset) {
  return pwritev(fd, parts, count, offset);
}

ssize_t pread(int fd, void* data, size_t bytes, off_t offset) {
  struct stat found;
  if (shortened && ours(fd, &found)) {
    pthread_mutex_lock(&mutex);
    const uint64_t transfer = ++transfers;
    pthread_mutex_unlock(&mutex);
    if (transfer % 5 == 0) {
      errno = EINTR;
      return -1;
    }
    if (bytes > kPage) bytes = (bytes / 2 + kPage - 1) / kPage * kPage;
  }
  return syscall(SYS_pread64, fd, data, bytes, offset);
}
ssize_t pread64(int fd, void* data, size_t bytes, off64_t offset) {
  return pread(fd, data, bytes, offset);
}

static int sync_it(int fd, int number) {
  struct stat found;
  if (!ours(fd, &found)) return (int)syscall(number, fd);
  pthread_mutex_lock(&mutex);
  if (fails()) {
    pthread_mutex_unlock(&mutex);
    errno = fail_error;
    return -1;
  }
  const uint64_t begun = note((struct Event){.kind = kSync, .inode = found.st_ino}, NULL, NULL);
  pthread_mutex_unlock(&mutex);
  if (sync_us > 0) usleep((useconds_t)sync_us);
  ended(begun);
  return 0;
}
int fsync(int fd) { return sync_it(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_it(fd, SYS_fdatasync); }

int ftruncate(int fd, off_t size) {
  struct stat found;
  if (!ours(fd, &found)) return (int)syscall(SYS_ftruncate, fd, size);
  pthread_mutex_lock(&mutex);
  int result = -1;
  if (!fails()) {
    result = (int)syscall(SYS_ftruncate, fd, size);
    if (result == 0) {
      note((struct Event){.kind = kTruncate, .inode = found.st_ino, .offset = (uint64_t)size}, NULL,
           NULL);
    }
  }
  const int error = errno;
  pthread_mutex_unlock(&mutex);
  errno = error;
  return result;
}
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

static int open_it(int folder, const char* path, int flags, mode_t mode) {
  char name[kPath];
  const int changing = (flags & O_CREAT) || (flags & O_TRUNC);
  if (!changing || !root || !absolute(folder, path, name)) {
    return (int)syscall(SYS_openat, folder, path, flags, mode);
  }
  pthread_mutex_lock(&mutex);
  struct stat before;
  const int there = lstat(name, &before) == 0;
  int fd = -1;
  if (there || !fails()) fd = (int)syscall(SYS_openat, folder, path, flags, mode);
  const int error = errno;
  if (fd >= 0 && !there) note_name(kCreate, name, inode_of(name));
  if (fd >= 0 && there && (flags & O_TRUNC)) {
    note((struct Event){.kind = kTruncate, .inode = before.st_ino}, NULL, NULL);
  }
  pthread_mutex_unlock(&mutex);
  errno = error;
  return fd;
}

#define OPEN_WITH_MODE(folder)           \
  mode_t mode = 0;                       \
  if (flags & (O_CREAT | __O_TMPFILE)) { \
    va_list more;                        \
    va_start(more, flags);               \
    mode = va_arg(more, mode_t);         \
    va_end(more);                        \
  }                                      \
  return open_it(folder, path, flags, mode)
int open(const char* path, int flags, ...) { OPEN_WITH_MODE(AT_FDCWD); }
int open64(const char* path, int flags, ...) { OPEN_WITH_MODE(AT_FDCWD); }
int openat(int folder, const char* path, int flags, ...) { OPEN_WITH_MODE(folder); }
int openat64(int folder, const char* path, int flags, ...) { OPEN_WITH_MODE(folder); }
int creat(const char* path, mode_t mode) {
  return open_it(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

int renameat(int from_folder, const char* from, int to_folder, const char* to) {
  char paths[2 * kPath], target[kPath];
  if (!root || !absolute(from_folder, from, paths) || !absolute(to_folder, to, target)) {
    return (int)syscall(SYS_renameat, from_folder, from, to_folder, to);
  }
  pthread_mutex_lock(&mutex);
  int result = -1;
  if (!fails()) {
    const uint64_t inode = inode_of(paths), parent = parent_of(target);
    result = (int)syscall(SYS_renameat, from_folder, from, to_folder, to);
    if (result == 0) {
      const size_t first = strlen(paths) + 1;
      strcpy(paths + first, target);
      note((struct Event){.kind = kRename,
                          .path_bytes = (uint32_t)(first + strlen(target)),
                          .inode = inode,
                          .parent = parent},
           paths, NULL);
    }
  }
  const int error = errno;
  pthread_mutex_unlock(&mutex);
  errno = error;
  return result;
}
int rename(const char* from, const char* to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

int unlinkat(int folder, const char* path, int flags) {
  char name[kPath];
  if (!root || !absolute(folder, path, name)) {
    return (int)syscall(SYS_unlinkat, folder, path, flags);
  }
  pthread_mutex_lock(&mutex);
  const uint64_t inode = inode_of(name);
  const int result = (int)syscall(SYS_unlinkat, folder, path, flags);
  const int error = errno;
  if (result == 0) note_name(kUnlink, name, inode);
  pthread_mutex_unlock(&mutex);
  errno = error;
  return result;
}
int unlink(const char* path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char* path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char* path) {
  const int result = unlinkat(AT_FDCWD, path, 0);
  return result != 0 && errno == EISDIR ? rmdir(path) : result;
}

int mkdirat(int folder, const char* path, mode_t mode) {
  char name[kPath];
  if (!root || !absolute(folder, path, name)) return (int)syscall(SYS_mkdirat, folder, path, mode);
  pthread_mutex_lock(&mutex);
  int result = -1;
  struct stat before;
  if (lstat(name, &before) == 0 || !fails()) {
    result = (int)syscall(SYS_mkdirat, folder, path, mode);
    if (result == 0) note_name(kMkdir, name, inode_of(name));
  }
  const int error = errno;
  pthread_mutex_unlock(&mutex);
  errno = error;
  return result;
}
int mkdir(const char* path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
