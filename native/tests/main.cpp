// native_tests KERNELS [NAME | --without NAME,…]: all tests (those whose name contains NAME; all but those named) with
// one set of kernels.
#include <cstdio>
#include <cstring>

#include <string>

#include "numbers.hpp"
#include "testing.hpp"

std::vector<Test> &tests() {
    static std::vector<Test> all;
    return all;
}

namespace {

bool is_asked_for(const char *name, int argc, char **argv) {
    if (argc == 4 && std::strcmp(argv[2], "--without") == 0)
        return ("," + std::string(argv[3]) + ",").find("," + std::string(name) + ",") == std::string::npos;
    return argc < 3 || std::strstr(name, argv[2]);
}

}  // namespace

int main(int argc, char **argv) {
    const char *isa = argc > 1 ? argv[1] : "auto";
    lluda_context *tried = nullptr;
    const int made = lluda_context_create(isa, 0, &tried);
    lluda_context_destroy(tried);
    if (made != LLUDA_OK) {
        std::printf("%s%s\n", made == LLUDA_UNSUPPORTED ? "skipped: " : "", lluda_last_error());
        return made == LLUDA_UNSUPPORTED ? 77 : 2;
    }
    use_kernels(isa);
    int passed = 0, failed = 0;
    for (const Test &test : tests()) {
        if (!is_asked_for(test.name, argc, argv)) continue;
        try {
            test.body();
            ++passed;
        } catch (const std::exception &error) {
            ++failed;
            std::printf("FAILED %s: %s\n", test.name, error.what());
        }
    }
    std::printf("%s kernels: %d passed, %d failed\n", lluda_context_isa(context()), passed, failed);
    return failed ? 1 : 0;
}
