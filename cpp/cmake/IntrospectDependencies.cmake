# The packages beside LibTorch, each as a target introspect::<name>. They are linked privately: a program that
# links libintrospect needs none of them to compile.
include_guard(GLOBAL)
find_package(PkgConfig QUIET)

# name, pkg-config module, and the package's name for Debian and Ubuntu; Fedora; Homebrew and conda-forge.
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
  else()
    string(APPEND _missing "\n  ${_module}: ${_debian} (Debian, Ubuntu), ${_fedora} (Fedora), ${_brew} (Homebrew, conda-forge)")
  endif()
endforeach()
if(NOT PkgConfig_FOUND)
  message(FATAL_ERROR "introspect: pkg-config is needed to find its dependencies; please install it")
elseif(_missing)
  message(FATAL_ERROR "introspect: please install the development packages of${_missing}\n"
                      "or add the folder of their .pc files to PKG_CONFIG_PATH.")
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
