// native_tests KERNELS [NAME]: all tests (or those whose name contains NAME) with one set of kernels.
#include <cstdio>
#include <cstring>

#include "numbers.hpp"
#include "testing.hpp"

std::vector<Test> &tests() {
    static std::vector<Test> all;
    return all;
}

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
        if (argc > 2 && !std::strstr(test.name, argv[2])) continue;
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
