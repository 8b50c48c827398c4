// A test is a function that throws when something is wrong; TEST registers it.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

struct Test {
    const char *name;
    void (*body)();
};

std::vector<Test> &tests();

struct Registration {
    Registration(const char *name, void (*body)()) { tests().push_back({name, body}); }
};

#define TEST(name)                                              \
    static void name();                                         \
    static const Registration registration_##name(#name, name); \
    static void name()

inline void expect(bool rule, const std::string &what) {
    if (!rule) throw std::runtime_error(what);
}

template <class A, class B>
void expect_equal(const A &actual, const B &expected, const std::string &what) {
    if (actual != static_cast<A>(expected))
        throw std::runtime_error(what + ": " + std::to_string(actual) + ", expected " + std::to_string(expected));
}
