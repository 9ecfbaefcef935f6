/* Preloaded into a process under test: counts the calls that change the disk and, at the n-th or at
 * all of one name, kills the process or makes the call fail.
 *
 * NOLA_FAULT_AT=<n> | NOLA_FAULT_NAME=<call>  NOLA_FAULT_SIGNAL=<number> | NOLA_FAULT_ERRNO=<number>
 * NOLA_FAULT_LOG=<file>: a line with its name appended for each call, so that a first run tells how
 * many there are, and in which order they come.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_int calls;

static int number(const char* name) {
    const char* text = getenv(name);
    return text ? atoi(text) : 0;
}

/* Returns 1 if the call is to fail; errno is then set. */
static int fault(const char* name) {
    const int call = atomic_fetch_add(&calls, 1) + 1;
    const char* log = getenv("NOLA_FAULT_LOG");
    if (log) {
        ssize_t (*real_write)(int, const void*, size_t) = dlsym(RTLD_NEXT, "write");
        int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        char line[64];
        const int length = snprintf(line, sizeof line, "%s\n", name);
        if (real_write(fd, line, length) != length) abort();
        close(fd);
    }
    const char* wanted = getenv("NOLA_FAULT_NAME");
    if (wanted ? strcmp(wanted, name) != 0 : call != number("NOLA_FAULT_AT")) return 0;
    if (number("NOLA_FAULT_SIGNAL")) {
        raise(number("NOLA_FAULT_SIGNAL"));
        return 0;
    }
    errno = number("NOLA_FAULT_ERRNO");
    return errno != 0;
}

#define WRAP(result, name, parameters, arguments)                  \
    result name parameters {                                       \
        static result(*real) parameters;                           \
        if (!real) real = (result(*) parameters)dlsym(RTLD_NEXT, #name); \
        if (fault(#name)) return -1;                               \
        return real arguments;                                     \
    }

WRAP(ssize_t, pwrite, (int fd, const void* b, size_t n, off_t o), (fd, b, n, o))
WRAP(ssize_t, pwrite64, (int fd, const void* b, size_t n, off_t o), (fd, b, n, o))
WRAP(ssize_t, copy_file_range, (int a, off_t* ao, int b, off_t* bo, size_t n, unsigned f),
     (a, ao, b, bo, n, f))
WRAP(int, ftruncate, (int fd, off_t n), (fd, n))
WRAP(int, ftruncate64, (int fd, off_t n), (fd, n))
WRAP(int, fsync, (int fd), (fd))
WRAP(int, mkdir, (const char* p, mode_t m), (p, m))
WRAP(int, rename, (const char* p, const char* q), (p, q))
WRAP(int, link, (const char* p, const char* q), (p, q))
WRAP(int, unlink, (const char* p), (p))
WRAP(int, unlinkat, (int d, const char* p, int f), (d, p, f))
WRAP(int, rmdir, (const char* p), (p))
WRAP(int, renameat2, (int a, const char* p, int b, const char* q, unsigned f), (a, p, b, q, f))
