# The packages beside LibTorch, each as a target introspect::<name>. They are linked privately: a program that
# links libintrospect needs none of them to compile.
include_guard(GLOBAL)
find_package(PkgConfig REQUIRED)

foreach(_pair sentencepiece=sentencepiece pcre2=libpcre2-8 sqlite=sqlite3 eigen=eigen3)
  string(REPLACE "=" ";" _pair ${_pair})
  list(GET _pair 0 _name)
  list(GET _pair 1 _module)
  pkg_check_modules(INTROSPECT_${_name} REQUIRED IMPORTED_TARGET ${_module})
  add_library(introspect::${_name} ALIAS PkgConfig::INTROSPECT_${_name})
endforeach()

find_package(nlohmann_json 3.10 CONFIG REQUIRED)
add_library(introspect::json ALIAS nlohmann_json::nlohmann_json)

# at::parallel_for is a template that needs -fopenmp where it is used, against the libgomp that torch itself loads:
# the same soname, so the process holds one OpenMP runtime.
add_library(introspect_openmp INTERFACE)
add_library(introspect::openmp ALIAS introspect_openmp)
target_compile_options(introspect_openmp INTERFACE -fopenmp)
find_library(INTROSPECT_gomp_LIBRARY NAMES libgomp.so.1 gomp PATHS "${INTROSPECT_TORCH_PREFIX}/lib" NO_DEFAULT_PATH)
if(INTROSPECT_gomp_LIBRARY)
  target_link_libraries(introspect_openmp INTERFACE "${INTROSPECT_gomp_LIBRARY}")
else()
  target_link_options(introspect_openmp INTERFACE -fopenmp)
endif()
