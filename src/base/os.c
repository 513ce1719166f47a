#include "base/os.h"

#ifdef _WIN32
#include <windows.h>
#else
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define FL_LINUX_I8MM (1u << 13) /* HWCAP2_I8MM, which older headers do not name */
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__) && defined(_WIN32)
#define FL_WINDOWS_DOTPROD 43 /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE, which older headers do not name */
#define FL_WINDOWS_I8MM 66    /* PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE */
#endif

/* ---- The system's files -- */

#ifdef _WIN32

/* The descriptor, or -1; *absent: because there is no such file. */
static intptr_t fl_os_open(fl_memory *m, const char *path, uint64_t *size, bool *absent) {
    int n = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, NULL, 0);
    wchar_t *wide = n > 0 ? fl_alloc(m, (size_t)n * sizeof *wide) : NULL;
    if (wide == NULL) {
        return -1;
    }
    MultiByteToWideChar(CP_UTF8, 0, path, -1, wide, n);
    HANDLE file = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, 0, NULL);
    fl_free(m, wide, (size_t)n * sizeof *wide);
    LARGE_INTEGER length;
    if (file == INVALID_HANDLE_VALUE) {
        *absent = GetLastError() == ERROR_FILE_NOT_FOUND || GetLastError() == ERROR_PATH_NOT_FOUND;
        return -1;
    }
    if (!GetFileSizeEx(file, &length)) {
        CloseHandle(file);
        return -1;
    }
    *size = (uint64_t)length.QuadPart;
    return (intptr_t)file;
}

static bool fl_os_read(intptr_t file, uint64_t offset, uint8_t *out, size_t n) {
    while (n > 0) {
        OVERLAPPED at = {0};
        at.Offset = (DWORD)offset;
        at.OffsetHigh = (DWORD)(offset >> 32);
        DWORD want = n > (1u << 30) ? 1u << 30 : (DWORD)n, got = 0;
        if (!ReadFile((HANDLE)file, out, want, &got, &at) || got == 0) {
            return false;
        }
        out += got;
        offset += got;
        n -= got;
    }
    return true;
}

static const uint8_t *fl_os_map(intptr_t file, uint64_t size) {
    HANDLE mapping = size != 0 ? CreateFileMappingW((HANDLE)file, NULL, PAGE_READONLY, 0, 0, NULL) : NULL;
    const uint8_t *map = mapping != NULL ? MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0) : NULL;
    if (mapping != NULL) {
        CloseHandle(mapping);
    }
    return map;
}

static void fl_os_unmap(const uint8_t *map, uint64_t size) {
    (void)size;
    UnmapViewOfFile(map);
}

static void fl_os_close(intptr_t file) {
    CloseHandle((HANDLE)file);
}

FL_LOCAL void fl_file_forget(const fl_file *f, uint64_t offset, uint64_t n_bytes) {
    (void)f;
    (void)offset;
    (void)n_bytes;
}

FL_LOCAL void fl_want_huge_pages(void *p, size_t n_bytes) {
    (void)p;
    (void)n_bytes;
}

FL_LOCAL uint32_t fl_n_cores(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwNumberOfProcessors > 0 ? (uint32_t)info.dwNumberOfProcessors : 1;
}

#else

/* The descriptor, or -1; *absent: because there is no such file. */
static intptr_t fl_os_open(fl_memory *m, const char *path, uint64_t *size, bool *absent) {
    (void)m;
    int file;
    do {
        file = open(path, O_RDONLY | O_CLOEXEC);
    } while (file < 0 && errno == EINTR);
    struct stat s;
    if (file < 0) {
        *absent = errno == ENOENT || errno == ENOTDIR;
        return -1;
    }
    if (fstat(file, &s) != 0 || !S_ISREG(s.st_mode) || s.st_size < 0) {
        close(file);
        return -1;
    }
    *size = (uint64_t)s.st_size;
    return file;
}

static bool fl_os_read(intptr_t file, uint64_t offset, uint8_t *out, size_t n) {
    while (n > 0) {
        ssize_t got = pread((int)file, out, n > (1u << 30) ? 1u << 30 : n, (off_t)offset);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return false;
        }
        out += got;
        offset += (uint64_t)got;
        n -= (size_t)got;
    }
    return true;
}

static const uint8_t *fl_os_map(intptr_t file, uint64_t size) {
    if (size == 0 || size > SIZE_MAX) {
        return NULL;
    }
    void *map = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, (int)file, 0);
    return map != MAP_FAILED ? map : NULL;
}

static void fl_os_unmap(const uint8_t *map, uint64_t size) {
    munmap((void *)(uintptr_t)map, (size_t)size);
}

static void fl_os_close(intptr_t file) {
    close((int)file);
}

/* For the whole pages among n_bytes at p. */
static void fl_os_advise(uintptr_t p, size_t n_bytes, int advice) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), skip = (size_t)(0 - p) % page;
    if (n_bytes > skip + page) {
        madvise((void *)(p + skip), (n_bytes - skip) / page * page, advice);
    }
}

FL_LOCAL void fl_file_forget(const fl_file *f, uint64_t offset, uint64_t n_bytes) {
    if (f->os_mapped) { /* so that all of it has an address */
        fl_os_advise((uintptr_t)(f->map + offset), (size_t)n_bytes, MADV_DONTNEED);
    }
}

FL_LOCAL void fl_want_huge_pages(void *p, size_t n_bytes) {
#if defined(MADV_HUGEPAGE)
    fl_os_advise((uintptr_t)p, n_bytes, MADV_HUGEPAGE);
#else
    (void)p;
    (void)n_bytes;
#endif
}

FL_LOCAL uint32_t fl_n_cores(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 && n < 4096 ? (uint32_t)n : 1;
}

#endif

/* ---- Files -- */

static bool fl_join_path(fl_memory *m, fl_file *f, const char *directory, const char *name) {
    size_t n_directory = strlen(directory), n_name = strlen(name);
    size_t slash = n_name > 0 && n_directory > 0 && directory[n_directory - 1] != '/';
    f->path_bytes = n_directory + slash + n_name + 1;
    f->path = fl_alloc(m, f->path_bytes);
    if (f->path == NULL) {
        return false;
    }
    memcpy(f->path, directory, n_directory);
    if (slash) {
        f->path[n_directory] = '/';
    }
    memcpy(f->path + n_directory + slash, name, n_name);
    return true;
}

/* A host's file that does not open counts as absent: its hooks cannot tell. */
static bool fl_file_open_path(fl_memory *m, fl_file *f, bool *absent) {
    if (m->host.file_open != NULL) {
        f->host_file = m->host.file_open(m->host.user, f->path);
        *absent = f->host_file == NULL;
        if (f->host_file != NULL) {
            f->size = m->host.file_size(m->host.user, f->host_file);
        }
        return f->host_file != NULL;
    }
    f->os_file = fl_os_open(m, f->path, &f->size, absent);
    return f->os_file != -1;
}

FL_LOCAL folollm_status fl_file_open(fl_memory *m, fl_file *f, const char *directory, const char *name, bool *found,
                                     folollm_error *error) {
    memset(f, 0, sizeof *f);
    f->memory = m;
    f->os_file = -1;
    if (!fl_join_path(m, f, directory, name)) {
        return fl_no_memory(error, "a path", f->path_bytes);
    }
    bool absent = false, open = fl_file_open_path(m, f, &absent);
    if (found != NULL) {
        *found = open;
    }
    folollm_status status = FOLOLLM_OK;
    if (!open && !(absent && found != NULL)) {
        status = fl_fail(error, FOLOLLM_E_IO, "cannot open the file %s: is it there, a file, and readable?", f->path);
    }
    if (!open) {
        fl_file_close(f);
    }
    return status;
}

FL_LOCAL folollm_status fl_file_read(fl_file *f, uint64_t offset, void *out, size_t n_bytes, folollm_error *error) {
    if (!fl_within(offset, n_bytes, f->size)) {
        return fl_fail(error, FOLOLLM_E_FORMAT, "%s: %u bytes wanted at offset %u, but the file has %u", f->path,
                       (uint64_t)n_bytes, offset, f->size);
    }
    const folollm_host *host = &f->memory->host;
    bool ok = f->host_file != NULL ? host->file_read(host->user, f->host_file, offset, out, n_bytes) == 0
                                   : fl_os_read(f->os_file, offset, out, n_bytes);
    if (!ok) {
        return fl_fail(error, FOLOLLM_E_IO, "%s: reading %u bytes at offset %u failed", f->path, (uint64_t)n_bytes,
                       offset);
    }
    return FOLOLLM_OK;
}

FL_LOCAL bool fl_file_map(fl_file *f) {
    const folollm_host *host = &f->memory->host;
    if (f->host_file != NULL) {
        f->map = host->file_map != NULL ? host->file_map(host->user, f->host_file) : NULL;
    } else if (f->map == NULL) {
        f->map = fl_os_map(f->os_file, f->size);
        f->os_mapped = f->map != NULL;
    }
    return f->map != NULL;
}

FL_LOCAL void fl_file_close(fl_file *f) {
    if (f->os_mapped) {
        fl_os_unmap(f->map, f->size);
    }
    if (f->host_file != NULL) {
        f->memory->host.file_close(f->memory->host.user, f->host_file);
    } else if (f->memory != NULL && f->os_file != -1) {
        fl_os_close(f->os_file);
    }
    if (f->memory != NULL) {
        fl_free(f->memory, f->path, f->path_bytes);
    }
    memset(f, 0, sizeof *f);
    f->os_file = -1;
}

FL_LOCAL folollm_status fl_file_slurp(fl_memory *m, const char *directory, const char *name, size_t max_bytes,
                                      bool *found, fl_str *text, folollm_error *error) {
    fl_file f;
    text->at = NULL;
    text->n = 0;
    FL_TRY(fl_file_open(m, &f, directory, name, found, error));
    if (found != NULL && !*found) {
        return FOLOLLM_OK;
    }
    folollm_status status = FOLOLLM_OK;
    char *block = NULL;
    if (f.size == 0 || f.size > max_bytes) {
        status = fl_fail(error, FOLOLLM_E_FORMAT, "%s has %u bytes; 1 to %u were expected", f.path, f.size,
                         (uint64_t)max_bytes);
    } else if ((block = fl_alloc_raw(m, (size_t)f.size)) == NULL) {
        status = fl_no_memory(error, name, (size_t)f.size);
    } else {
        status = fl_file_read(&f, 0, block, (size_t)f.size, error);
    }
    if (status == FOLOLLM_OK) {
        text->at = block;
        text->n = (size_t)f.size;
    } else {
        fl_free(m, block, (size_t)f.size);
    }
    fl_file_close(&f);
    return status;
}

/* ---- Processor -- */

FL_LOCAL fl_cpu fl_cpu_features(void) {
    fl_cpu cpu = {false, false, false, false, false, false, false, false};
#if defined(__x86_64__) || defined(__i386__)
    unsigned a, b, c, d;
    cpu.prefetch = __get_cpuid(0, &a, &b, &c, &d);
    cpu.streams = cpu.prefetch && b == signature_AMD_ebx;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) {
        return cpu;
    }
    bool fma = (c & bit_FMA) && (c & bit_F16C);
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        return cpu;
    }
    unsigned wide = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    cpu.avx2 = fma && (b & bit_AVX2) && (low & 0x06) == 0x06;
    cpu.avx512 = cpu.avx2 && (b & wide) == wide && (low & 0xE6) == 0xE6;
    cpu.vnni = cpu.avx512 && (c & bit_AVX512VNNI) != 0;
    cpu.avxvnni = cpu.avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4) != 0;
#elif defined(__aarch64__) && defined(__linux__)
    cpu.dotprod = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
    cpu.i8mm = cpu.dotprod && (getauxval(AT_HWCAP2) & FL_LINUX_I8MM) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
    int there = 0;
    size_t n_bytes = sizeof there;
    cpu.dotprod = sysctlbyname("hw.optional.arm.FEAT_DotProd", &there, &n_bytes, NULL, 0) == 0 && there != 0;
    cpu.i8mm = cpu.dotprod && sysctlbyname("hw.optional.arm.FEAT_I8MM", &there, &n_bytes, NULL, 0) == 0 && there != 0;
#elif defined(__aarch64__) && defined(_WIN32)
    cpu.dotprod = IsProcessorFeaturePresent(FL_WINDOWS_DOTPROD) != 0;
    cpu.i8mm = cpu.dotprod && IsProcessorFeaturePresent(FL_WINDOWS_I8MM) != 0;
#endif
    return cpu;
}
