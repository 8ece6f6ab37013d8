/* operant/file.h: whole files and directories. Errors are OP_ERR_IO and name the file, what was tried and the system's reason. */
#ifndef OPERANT_FILE_H
#define OPERANT_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include <operant/status.h>

/* Writes a file atomically: `path` holds all of the new content or is as it was. */
op_status op_file_put(const char *path, const void *bytes, size_t n, op_error *e);

/* As mkdir -p, with mode 0777 less the umask. */
op_status op_dir_make(const char *path, op_error *e);
/* Renames a file or directory and makes it durable; an existing file is replaced. */
op_status op_path_rename(const char *from, const char *to, op_error *e);
/* Removes a file, or a directory with all it holds (links are not followed); what does not exist is fine. */
op_status op_path_remove(const char *path, op_error *e);
bool op_path_exists(const char *path);
bool op_path_is_dir(const char *path);
/* Do both exist and are one and the same, whatever they are called? */
bool op_path_same(const char *a, const char *b);
/* "dir/name" as a new string (op_free); NULL when memory is out. */
char *op_path_join(const char *dir, const char *name);

#endif
