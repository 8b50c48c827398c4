// A mapped file that is shortened: a line and an exit code for a watched one, SIGBUS for another.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

#include "lluda_native.h"
#include "testing.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

constexpr std::size_t kBytes = 1 << 16;

// A map of a file of zeros; `shorten` takes all its pages away.
class Mapped {
public:
    Mapped() : file_(std::tmpfile()) {
        expect(file_ && ftruncate(fileno(file_), kBytes) == 0, "no temporary file");
        begin = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fileno(file_), 0);
        expect(begin != MAP_FAILED, "no map");
    }
    ~Mapped() {
        munmap(begin, kBytes);
        std::fclose(file_);
    }
    void shorten() const { expect(ftruncate(fileno(file_), 0) == 0, "not shortened"); }
    void touch() const { *(static_cast<volatile char *>(begin) + kBytes / 2); }

    void *begin = nullptr;

private:
    std::FILE *file_;
};

struct Ending {
    int status;
    std::string told;
};

// What becomes of a child that runs `body`, and what it writes to stderr.
template <class Body>
Ending in_child(Body body) {
    int ends[2];
    expect(pipe(ends) == 0, "no pipe");
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
#if defined(__SANITIZE_ADDRESS__)
        signal(SIGBUS, SIG_DFL);  // its handler would write a report
#endif
        body();
        _exit(0);
    }
    close(ends[1]);
    Ending ending{-1, {}};
    char buffer[256];
    for (ssize_t count; (count = read(ends[0], buffer, sizeof buffer)) > 0;)
        ending.told.append(buffer, static_cast<std::size_t>(count));
    close(ends[0]);
    waitpid(child, &ending.status, 0);
    return ending;
}

}  // namespace

TEST(a_watched_file_that_is_shortened_is_told) {
    const Ending ending = in_child([] {
        const Mapped file, other;
        lluda_watch_mapped_file(other.begin, kBytes, "the other one\n", 4);
        lluda_watch_mapped_file(file.begin, kBytes, "it was shortened\n", 3);
        file.shorten();
        file.touch();
    });
    expect(WIFEXITED(ending.status) && WEXITSTATUS(ending.status) == 3, "not ended with its code");
    expect(ending.told == "it was shortened\n", "told: " + ending.told);
}

TEST(a_file_that_is_watched_no_more_ends_as_the_system_ends_it) {
    const Ending ending = in_child([] {
        const Mapped file, other;
        void *watch = lluda_watch_mapped_file(file.begin, kBytes, "it was shortened\n", 3);
        lluda_watch_mapped_file(other.begin, kBytes, "the other one\n", 4);
        lluda_unwatch_mapped_file(watch);
        file.shorten();
        file.touch();
    });
    expect(WIFSIGNALED(ending.status) && WTERMSIG(ending.status) == SIGBUS, "not ended by SIGBUS");
    expect(ending.told.empty(), "told: " + ending.told);
}

TEST(watches_are_used_again_and_their_arguments_are_checked) {
    char byte = 0;
    expect(!lluda_watch_mapped_file(nullptr, 1, "", 1), "no file");
    expect(!lluda_watch_mapped_file(&byte, 0, "", 1), "no bytes");
    expect(!lluda_watch_mapped_file(&byte, -1, "", 1), "less than no bytes");
    expect(!lluda_watch_mapped_file(&byte, 1, nullptr, 1), "no line");
    lluda_unwatch_mapped_file(nullptr);
    void *first = lluda_watch_mapped_file(&byte, 1, std::string(9000, 'x').c_str(), 1);
    expect(first, "a line that is too long is cut");
    lluda_unwatch_mapped_file(first);
    expect(lluda_watch_mapped_file(&byte, 1, "", 1) == first, "memory grows with every file");
    lluda_unwatch_mapped_file(first);
}
#endif
