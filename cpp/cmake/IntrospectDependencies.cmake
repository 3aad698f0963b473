# The packages beside LibTorch, each as a target introspect::<name>. They are linked privately: a program that links
# libintrospect needs none of them to compile.
#
# The system's package is taken where pkg-config knows one; otherwise a release with a pinned hash is fetched and built
# into libintrospect. INTROSPECT_FETCH_DEPENDENCIES=OFF makes a missing package an error that names it instead.
include_guard(GLOBAL)
include(FetchContent)
option(INTROSPECT_FETCH_DEPENDENCIES "Fetch pinned releases of the dependencies that the system does not have" ON)
find_package(PkgConfig QUIET)

set(INTROSPECT_sentencepiece_URL https://github.com/google/sentencepiece/archive/v0.1.97.tar.gz)
set(INTROSPECT_sentencepiece_SHA256 41c3a07f315e3ac87605460c8bb8d739955bc8e7f478caec4017ef9b7d78669b)
set(INTROSPECT_pcre2_URL https://github.com/PCRE2Project/pcre2/releases/download/pcre2-10.42/pcre2-10.42.tar.gz)
set(INTROSPECT_pcre2_SHA256 c33b418e3b936ee3153de2c61cc638e7e4fe3156022a5c77d0711bcbb9d64f1f)
set(INTROSPECT_sqlite_URL https://www.sqlite.org/2022/sqlite-amalgamation-3400100.zip)
set(INTROSPECT_sqlite_SHA256 49112cc7328392aa4e3e5dae0b2f6736d0153430143d21f69327788ff4efe734)
set(INTROSPECT_eigen_URL https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.gz)
set(INTROSPECT_eigen_SHA256 8586084f71f9bde545ee7fa6d00288b264a2b7ac3607b974e54d13e7162c1c72)
set(INTROSPECT_json_URL https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz)
set(INTROSPECT_json_SHA256 d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d)
set(INTROSPECT_catch2_URL https://github.com/catchorg/Catch2/archive/v2.13.10.tar.gz)
set(INTROSPECT_catch2_SHA256 d54a712b7b1d7708bc7a819a8e6e47b2fde9536f487b89ccbca295072a7d9943)

# Sets introspect_<name>_SOURCE_DIR and _BINARY_DIR; nothing of the package is configured.
macro(introspect_fetch name)
  message(STATUS "introspect: no ${name} on this system, fetching ${INTROSPECT_${name}_URL}")
  FetchContent_Declare(introspect_${name} URL ${INTROSPECT_${name}_URL}
    URL_HASH SHA256=${INTROSPECT_${name}_SHA256} SOURCE_SUBDIR none DOWNLOAD_EXTRACT_TIMESTAMP OFF)
  FetchContent_MakeAvailable(introspect_${name})
endmacro()

# Adds the target introspect_<name>, from source. A function, so that the options it sets reach no further.
function(introspect_build name)
  introspect_fetch(${name})
  set(source ${introspect_${name}_SOURCE_DIR})
  set(binary ${introspect_${name}_BINARY_DIR})
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW) # the variables below stand before these projects' own defaults
  set(CMAKE_POLICY_DEFAULT_CMP0063 NEW) # hidden symbols in static libraries too
  set(CMAKE_POLICY_VERSION_MINIMUM 3.5)
  set(CMAKE_MESSAGE_LOG_LEVEL WARNING)
  set(BUILD_SHARED_LIBS OFF)
  set(BUILD_TESTING OFF)
  add_library(introspect_${name} INTERFACE)
  if(name STREQUAL "sentencepiece")
    set(SPM_ENABLE_SHARED OFF)
    set(SPM_ENABLE_TCMALLOC OFF)
    add_compile_options(-w "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include cstdint>") # GCC 13 no longer includes it by accident
    add_subdirectory(${source} ${binary} EXCLUDE_FROM_ALL)
    target_include_directories(introspect_${name} INTERFACE ${source}/src)
    target_link_libraries(introspect_${name} INTERFACE sentencepiece-static)
  elseif(name STREQUAL "pcre2")
    set(PCRE2_STATIC_PIC ON)
    set(PCRE2_SUPPORT_JIT ON)
    set(PCRE2_BUILD_PCRE2GREP OFF)
    set(PCRE2_BUILD_TESTS OFF)
    set(PCRE2_SHOW_REPORT OFF)
    add_subdirectory(${source} ${binary} EXCLUDE_FROM_ALL)
    target_include_directories(introspect_${name} INTERFACE ${binary})
    target_link_libraries(introspect_${name} INTERFACE pcre2-8-static)
  elseif(name STREQUAL "sqlite")
    find_package(Threads REQUIRED)
    add_library(introspect_sqlite3 STATIC ${source}/sqlite3.c)
    target_compile_definitions(introspect_sqlite3 PRIVATE SQLITE_OMIT_LOAD_EXTENSION)
    target_include_directories(introspect_${name} INTERFACE ${source})
    target_link_libraries(introspect_${name} INTERFACE introspect_sqlite3 Threads::Threads)
  elseif(name STREQUAL "eigen")
    target_include_directories(introspect_${name} SYSTEM INTERFACE ${source})
  elseif(name STREQUAL "json")
    target_include_directories(introspect_${name} SYSTEM INTERFACE ${source}/include)
  endif()
endfunction()

# name, pkg-config module, and the package's name for Debian and Ubuntu; Fedora; Homebrew and conda-forge
set(_missing "")
foreach(_row
    "sentencepiece|sentencepiece|libsentencepiece-dev|sentencepiece-devel|sentencepiece"
    "pcre2|libpcre2-8|libpcre2-dev|pcre2-devel|pcre2"
    "sqlite|sqlite3|libsqlite3-dev|sqlite-devel|sqlite"
    "eigen|eigen3|libeigen3-dev|eigen3-devel|eigen"
    "json|nlohmann_json|nlohmann-json3-dev|json-devel|nlohmann-json")
  string(REPLACE "|" ";" _row "${_row}")
  list(POP_FRONT _row _name _module _debian _fedora _brew)
  if(PkgConfig_FOUND)
    pkg_check_modules(INTROSPECT_${_name} QUIET IMPORTED_TARGET ${_module})
  endif()
  if(TARGET PkgConfig::INTROSPECT_${_name})
    message(STATUS "introspect: ${_module} ${INTROSPECT_${_name}_VERSION}")
    add_library(introspect::${_name} ALIAS PkgConfig::INTROSPECT_${_name})
  elseif(INTROSPECT_FETCH_DEPENDENCIES)
    enable_language(C) # of this directory, not of the function: pcre2 and sqlite are C
    introspect_build(${_name})
    add_library(introspect::${_name} ALIAS introspect_${_name})
  else()
    string(APPEND _missing "\n  ${_debian} (Debian, Ubuntu), ${_fedora} (Fedora), ${_brew} (Homebrew, conda-forge)")
  endif()
endforeach()
if(_missing)
  message(FATAL_ERROR "introspect: please install pkg-config and${_missing}\nor set INTROSPECT_FETCH_DEPENDENCIES=ON.")
endif()

# at::parallel_for is a template that needs -fopenmp where it is used, against the libgomp that torch itself loads:
# the same soname, so the process holds one OpenMP runtime.
add_library(introspect_openmp INTERFACE)
add_library(introspect::openmp ALIAS introspect_openmp)
target_compile_options(introspect_openmp INTERFACE -fopenmp)
find_library(INTROSPECT_gomp_LIBRARY NAMES libgomp.so.1 gomp PATHS "${INTROSPECT_TORCH_PREFIX}/lib" NO_DEFAULT_PATH NO_CACHE)
if(INTROSPECT_gomp_LIBRARY)
  target_link_libraries(introspect_openmp INTERFACE "${INTROSPECT_gomp_LIBRARY}")
else()
  target_link_options(introspect_openmp INTERFACE -fopenmp)
endif()
