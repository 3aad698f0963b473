#pragma once

/// Before a function: the compiler makes one copy of it per instruction set and picks when the library is loaded.
///
/// That is before ThreadSanitizer is ready to watch the picking, which crashes; a build for it has one copy.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__)
#define INTROSPECT_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define INTROSPECT_CLONES
#endif
