// native_tests KERNELS [NAME]: all tests (or those whose name contains NAME) with one set of kernels.
#include <cstdio>
#include <cstring>

#include "lluda_native.h"
#include "testing.hpp"

std::vector<Test> &tests() {
    static std::vector<Test> all;
    return all;
}

int main(int argc, char **argv) {
    const int chosen = lluda_select_isa(argc > 1 ? argv[1] : "auto");
    if (chosen == LLUDA_UNSUPPORTED) {
        std::printf("skipped: %s\n", lluda_last_error());
        return 77;
    }
    if (chosen != LLUDA_OK) {
        std::printf("%s\n", lluda_last_error());
        return 2;
    }
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
    std::printf("%s kernels: %d passed, %d failed\n", lluda_isa(), passed, failed);
    return failed ? 1 : 0;
}
