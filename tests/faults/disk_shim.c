/* A disk that is slow, or fails: preloaded into a process, for files below SHIM_FOLDER.

   SHIM_ERRNO   what writing ends with after SHIM_WRITES calls that were let through
   SHIM_DELAY   microseconds that every fsync, rename and write waits */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;

static int is_ours(const char *path) {
    const char *folder = getenv("SHIM_FOLDER");
    return folder && strncmp(path, folder, strlen(folder)) == 0;
}

static int is_our_file(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_ours(path);
}

static void wait_a_little(void) {
    const char *delay = getenv("SHIM_DELAY");
    if (delay) usleep(atol(delay));
}

static int fails(void) {
    const char *number = getenv("SHIM_ERRNO"), *writes = getenv("SHIM_WRITES");
    if (!number || atomic_fetch_add(&calls, 1) < atol(writes)) return 0;
    errno = atoi(number);
    return 1;
}

#define WRITE(name, parameters, arguments)                                              \
    ssize_t name parameters {                                                           \
        ssize_t(*real) parameters = dlsym(RTLD_NEXT, #name);                            \
        if (is_our_file(file)) {                                                        \
            wait_a_little();                                                            \
            if (fails()) return -1;                                                     \
        }                                                                               \
        return real arguments;                                                          \
    }

WRITE(write, (int file, const void *data, size_t size), (file, data, size))
WRITE(pwrite, (int file, const void *data, size_t size, off_t at), (file, data, size, at))
WRITE(pwrite64, (int file, const void *data, size_t size, off_t at), (file, data, size, at))
WRITE(writev, (int file, const struct iovec *parts, int n), (file, parts, n))

#define WAIT(name)                                                                      \
    int name(int file) {                                                                \
        int (*real)(int) = dlsym(RTLD_NEXT, #name);                                     \
        if (is_our_file(file)) wait_a_little();                                         \
        return real(file);                                                              \
    }

WAIT(fsync)
WAIT(fdatasync)

int rename(const char *old, const char *new) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    if (is_ours(old)) wait_a_little();
    return real(old, new);
}
