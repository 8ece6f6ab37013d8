#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/mem.h"

static op_status io_error(op_error *e, const char *path, const char *verb)
{
    return op_error_set(e, OP_ERR_IO, "%s: cannot %s: %s", path, verb, strerror(errno));
}

static op_status no_memory(op_error *e, const char *path)
{
    return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path);
}

/* Opens a regular file for reading and tells its size. */
static op_status open_regular(const char *path, int *fd, size_t *size, op_error *e)
{
    struct stat st;
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0)
        return io_error(e, path, "open");
    if (fstat(*fd, &st)) {
        op_status s = io_error(e, path, "stat");
        close(*fd);
        return s;
    }
    if (!S_ISREG(st.st_mode)) {
        close(*fd);
        return op_error_set(e, OP_ERR_IO, "%s: found a %s, expected a regular file", path,
                            S_ISDIR(st.st_mode) ? "directory" : "special file");
    }
    *size = (size_t)st.st_size;
    return OP_OK;
}

op_status op_map_open(op_map *m, const char *path, op_error *e)
{
    int fd;
    size_t size;
    *m = (op_map){0};
    op_status s = open_regular(path, &fd, &size, e);
    if (s)
        return s;
    void *data = size ? mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0) : (void *)"";
    if (data == MAP_FAILED)
        s = io_error(e, path, "map");
    else
        *m = (op_map){data, size};
    close(fd);
    return s;
}

op_status op_file_hash(const char *path, char *hash, op_error *e)
{
    op_map m;
    op_status s = op_map_open(&m, path, e);
    if (!s)
        op_hash(m.data, m.size, hash);
    op_map_close(&m);
    return s;
}

void op_map_close(op_map *m)
{
    if (m->size)
        munmap((void *)(uintptr_t)m->data, m->size);
    *m = (op_map){0};
}

op_status op_file_read(const char *path, op_buf *out, op_error *e)
{
    int fd;
    size_t size;
    op_status s = open_regular(path, &fd, &size, e);
    if (s)
        return s;
    if (size > out->max || out->len > out->max - size) {
        close(fd);
        return op_error_set(e, OP_ERR_FORMAT, "%s: found %zu bytes, expected at most %zu", path, size, out->max - out->len);
    }
    char chunk[1 << 16];
    ssize_t n;
    while (!s && (n = read(fd, chunk, sizeof chunk)) != 0) {
        if (n > 0)
            s = op_buf_add(out, chunk, (size_t)n) ? no_memory(e, path) : OP_OK;
        else if (errno != EINTR)
            s = io_error(e, path, "read");
    }
    close(fd);
    if (!s && op_buf_add(out, "", 0)) /* an empty file is an empty string, not NULL */
        s = no_memory(e, path);
    return s;
}

op_status op_file_create(op_file *f, const char *path, op_error *e)
{
    static atomic_uint serial; /* two threads may write the same path */
    *f = (op_file){0};
    size_t room = strlen(path) + sizeof ".tmp-2147483647-4294967295";
    f->path = op_strdup(path);
    f->temp = op_alloc(room);
    if (!f->path || !f->temp) {
        op_file_abort(f);
        return no_memory(e, path);
    }
    snprintf(f->temp, room, "%s.tmp-%d-%u", path, (int)getpid(), atomic_fetch_add(&serial, 1));
    f->stream = fopen(f->temp, "wbe");
    if (!f->stream) {
        op_status s = io_error(e, path, "create");
        op_file_abort(f);
        return s;
    }
    return OP_OK;
}

op_status op_file_write(op_file *f, const void *bytes, size_t n, op_error *e)
{
    if (n && fwrite(bytes, 1, n, f->stream) != n)
        return io_error(e, f->path, "write");
    f->size += n;
    return OP_OK;
}

op_status op_file_zeros(op_file *f, size_t n, op_error *e)
{
    static const char zeros[4096];
    op_status s = OP_OK;
    for (size_t part; !s && n; n -= part) {
        part = n < sizeof zeros ? n : sizeof zeros;
        s = op_file_write(f, zeros, part, e);
    }
    return s;
}

/* Makes a rename durable. Some file systems cannot sync a directory; they are left in peace. */
static void sync_parent(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash == path ? op_strdup("/") : slash ? op_strndup(path, (size_t)(slash - path)) : op_strdup(".");
    int fd = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    op_free(dir);
}

op_status op_path_rename(const char *from, const char *to, op_error *e)
{
    if (rename(from, to))
        return io_error(e, to, "rename a finished file to this name");
    sync_parent(to);
    return OP_OK;
}

op_status op_file_commit(op_file *f, op_error *e)
{
    op_status s = OP_OK;
    if (fflush(f->stream) || fsync(fileno(f->stream)))
        s = io_error(e, f->path, "write");
    if (fclose(f->stream) && !s)
        s = io_error(e, f->path, "write");
    f->stream = NULL;
    if (!s)
        s = op_path_rename(f->temp, f->path, e);
    if (s)
        unlink(f->temp);
    op_file_abort(f);
    return s;
}

void op_file_abort(op_file *f)
{
    if (f->stream) {
        fclose(f->stream);
        unlink(f->temp);
    }
    op_free(f->path);
    op_free(f->temp);
    *f = (op_file){0};
}

op_status op_file_put(const char *path, const void *bytes, size_t n, op_error *e)
{
    op_file f;
    op_status s = op_file_create(&f, path, e);
    if (!s)
        s = op_file_write(&f, bytes, n, e);
    if (!s)
        return op_file_commit(&f, e);
    op_file_abort(&f);
    return s;
}

op_status op_dir_make(const char *path, op_error *e)
{
    char *copy = op_strdup(path);
    if (!copy)
        return no_memory(e, path);
    op_status s = OP_OK;
    for (char *p = copy + (*copy == '/'); !s && *p; p++) {
        p += strcspn(p, "/");
        char end = *p;
        *p = 0;
        if (mkdir(copy, 0777) && !(errno == EEXIST && op_path_is_dir(copy)))
            s = io_error(e, copy, "make this directory");
        *p = end;
        if (!end)
            break;
    }
    op_free(copy);
    return s;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

op_status op_path_remove(const char *path, op_error *e)
{
    enum { OPEN_DIRS = 16 };
    if (nftw(path, remove_one, OPEN_DIRS, FTW_DEPTH | FTW_PHYS) && errno != ENOENT)
        return io_error(e, path, "remove");
    return OP_OK;
}

bool op_path_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

bool op_path_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool op_path_same(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

char *op_path_join(const char *dir, const char *name)
{
    size_t n = strlen(dir), room = n + strlen(name) + 2;
    char *path = op_alloc(room);
    if (path)
        snprintf(path, room, "%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name);
    return path;
}
