/* Preloaded into a process: journals what it writes to files below a folder, so that a power cut can be played later.

   POWERCUT_FOLDER: the folder; POWERCUT_JOURNAL: the journal. Each entry is a header (struct entry), the file's path
   and the bytes that were written. Times are of CLOCK_MONOTONIC. Only calls that succeeded are journaled. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

struct entry {
    double begun_s, ended_s;
    int64_t offset, length; /* of a truncation: its offset is the new size */
    int32_t kind, path_length;
};
enum { WRITE = 1, TRUNCATE = 2, SYNC = 3, UNLINK = 4 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

static ssize_t real_write(int file, const void *bytes, size_t length) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = next("write");
    return real(file, bytes, length);
}

static void note(int kind, const char *path, double begun_s, int64_t offset, const void *bytes, int64_t length) {
    static int journal = -1;
    const char *folder = getenv("POWERCUT_FOLDER");
    if (!folder || strncmp(path, folder, strlen(folder))) return;
    int before = errno;
    struct entry entry = {begun_s, now(), offset, length, kind, (int32_t)strlen(path)};
    pthread_mutex_lock(&lock);
    if (journal < 0) journal = open(getenv("POWERCUT_JOURNAL"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (real_write(journal, &entry, sizeof entry) != sizeof entry || real_write(journal, path, entry.path_length) < 0 ||
        (kind == WRITE && real_write(journal, bytes, length) != length))
        abort();
    pthread_mutex_unlock(&lock);
    errno = before;
}

static void note_file(int kind, int file, double begun_s, int64_t offset, const void *bytes, int64_t length) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0) return;
    path[size] = 0;
    note(kind, path, begun_s, offset, bytes, length);
}

ssize_t write(int file, const void *bytes, size_t length) {
    double begun_s = now();
    off_t offset = lseek(file, 0, SEEK_CUR);
    ssize_t written = real_write(file, bytes, length);
    if (written > 0 && offset >= 0) note_file(WRITE, file, begun_s, offset, bytes, written);
    return written;
}

#define PWRITE(name, offset_type)                                                                                      \
    ssize_t name(int file, const void *bytes, size_t length, offset_type offset) {                                     \
        static ssize_t (*real)(int, const void *, size_t, offset_type);                                                \
        if (!real) real = next(#name);                                                                                 \
        double begun_s = now();                                                                                        \
        ssize_t written = real(file, bytes, length, offset);                                                           \
        if (written > 0) note_file(WRITE, file, begun_s, offset, bytes, written);                                      \
        return written;                                                                                                \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define TRUNCATION(name, offset_type)                                                                                  \
    int name(int file, offset_type size) {                                                                             \
        static int (*real)(int, offset_type);                                                                          \
        if (!real) real = next(#name);                                                                                 \
        double begun_s = now();                                                                                        \
        int failed = real(file, size);                                                                                 \
        if (!failed) note_file(TRUNCATE, file, begun_s, size, NULL, 0);                                                \
        return failed;                                                                                                 \
    }
TRUNCATION(ftruncate, off_t)
TRUNCATION(ftruncate64, off64_t)

#define SYNCING(name)                                                                                                  \
    int name(int file) {                                                                                               \
        static int (*real)(int);                                                                                       \
        if (!real) real = next(#name);                                                                                 \
        double begun_s = now();                                                                                        \
        int failed = real(file);                                                                                       \
        if (!failed) note_file(SYNC, file, begun_s, 0, NULL, 0);                                                       \
        return failed;                                                                                                 \
    }
SYNCING(fsync)
SYNCING(fdatasync)

int unlink(const char *path) {
    static int (*real)(const char *);
    if (!real) real = next("unlink");
    double begun_s = now();
    int failed = real(path);
    if (!failed) note(UNLINK, path, begun_s, 0, NULL, 0);
    return failed;
}
