// Asks for the versions of glibc's functions that torch's own wheels ask for. Otherwise a library that is built where
// glibc is newer than 2.28 would load only there. The results are the same.
#pragma once

#if defined(__gnu_linux__) && defined(__x86_64__)
__asm__(".symver exp,exp@GLIBC_2.2.5");
__asm__(".symver log,log@GLIBC_2.2.5");
#elif defined(__gnu_linux__) && defined(__aarch64__)
__asm__(".symver exp,exp@GLIBC_2.17");
__asm__(".symver log,log@GLIBC_2.17");
#endif
