// Mapped files that another program shortens: a line that names the file and an orderly end, where the system would kill
// the process without a word (SIGBUS).
#include <cstdint>
#include <cstring>

#include "lluda_native.h"

#if defined(__unix__) || defined(__APPLE__)
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <new>

namespace {

// One file. Never freed, as the handler may be looking at it; used again when its map is gone.
struct MappedFile {
    std::atomic<std::uintptr_t> begin{0};  // 0: not in use
    std::uintptr_t size = 0;
    int exit_code = 0;
    char line[4096] = {};
    std::size_t length = 0;
    MappedFile *next = nullptr;
};

std::atomic<MappedFile *> files{nullptr};
std::mutex mutex;
struct sigaction previous;
std::atomic_flag told = ATOMIC_FLAG_INIT;

// Runs in the thread that touched the page: only what is safe in a signal handler.
void handle(int, siginfo_t *info, void *) {
    const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
    for (const MappedFile *file = files.load(std::memory_order_acquire); file; file = file->next) {
        const std::uintptr_t begin = file->begin.load(std::memory_order_acquire);
        if (!begin || address < begin || address - begin >= file->size) continue;
        while (told.test_and_set()) pause();  // another thread is telling and ends the process
        if (write(STDERR_FILENO, file->line, file->length) < 0) {  // nobody is there to be told
        }
        _exit(file->exit_code);
    }
    // Not ours: the access is tried again and meets whoever was here before.
    sigaction(SIGBUS, &previous, nullptr);
}

bool install() {
    struct sigaction action = {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, &previous) == 0;
}

MappedFile *unused() {
    for (MappedFile *file = files.load(); file; file = file->next)
        if (!file->begin.load()) return file;
    auto *file = new (std::nothrow) MappedFile;
    if (!file) return nullptr;
    file->next = files.load();
    files.store(file, std::memory_order_release);
    return file;
}

}  // namespace

void *lluda_watch_mapped_file(const void *begin, int64_t bytes, const char *line, int exit_code) {
    if (!begin || bytes <= 0 || !line) return nullptr;
    const std::lock_guard<std::mutex> lock(mutex);
    static const bool installed = install();
    MappedFile *file = installed ? unused() : nullptr;
    if (!file) return nullptr;
    file->size = static_cast<std::uintptr_t>(bytes);
    file->exit_code = exit_code;
    file->length = strnlen(line, sizeof(file->line));
    std::memcpy(file->line, line, file->length);
    file->begin.store(reinterpret_cast<std::uintptr_t>(begin), std::memory_order_release);
    return file;
}

void lluda_unwatch_mapped_file(void *watch) {
    if (!watch) return;
    const std::lock_guard<std::mutex> lock(mutex);
    static_cast<MappedFile *>(watch)->begin.store(0, std::memory_order_release);
}

#else

void *lluda_watch_mapped_file(const void *, int64_t, const char *, int) { return nullptr; }
void lluda_unwatch_mapped_file(void *) {}

#endif
