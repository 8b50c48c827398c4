// What GCC's headers call since GCC 11 and the libstdc++ of manylinux_2_28 (GCC 8) does not have, so that a wheel that
// a newer compiler built runs there. exports.map keeps it in this library.
#include <new>

#ifdef __GLIBCXX__
namespace std {

void __throw_bad_array_new_length() { throw bad_array_new_length(); }

}  // namespace std
#endif
