// Versions of glibc's functions that torch's own wheels have too: else a library that is built where glibc is newer
// than 2.28 loads nowhere else. The results are the same.
#pragma once

#if defined(__gnu_linux__) && defined(__x86_64__)
__asm__(".symver exp,exp@GLIBC_2.2.5");
__asm__(".symver log,log@GLIBC_2.2.5");
#elif defined(__gnu_linux__) && defined(__aarch64__)
__asm__(".symver exp,exp@GLIBC_2.17");
__asm__(".symver log,log@GLIBC_2.17");
#endif
