# Finds C++ libkvikio as the packages libkvikio-cu13 (or -cu12), rapids-logger and nvidia-cufile install it for the
# building Python. Nothing of cuFile or CUDA is linked; their headers are needed. kvikio's own CMake configuration is not
# used: it wants CMake 4, a lib64 search that Debian's CMake lacks, and a linkable cuFile, which its package does not have.
# The defines below choose the layout of the classes that kvikio shares with us and must be those that its package is
# built with: without that of the thread pool every transfer waits for ever.
# Sets Kvikio_FOUND, Kvikio_VERSION (release, "26.10") and the target Kvikio::kvikio.
if(NOT Kvikio_FOLDERS)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
      "import glob, os, sys\nfor name in ('libkvikio/include/kvikio/file_handle.hpp', 'rapids_logger/include/rapids_logger/logger.hpp', 'nvidia/*/include/cufile.h'):\n  found = [f for p in sys.path for f in sorted(glob.glob(os.path.join(p, name)), reverse=True)]\n  print(found[0] if found else '')"
    OUTPUT_VARIABLE _kvikio_headers OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  string(REPLACE "\n" ";" _kvikio_headers "${_kvikio_headers}")
endif()
set(_kvikio_wanted "Kvikio_HEADER" "RapidsLogger_HEADER" "CuFile_HEADER")
foreach(_wanted _header IN ZIP_LISTS _kvikio_wanted _kvikio_headers)
  set(${_wanted} "${_header}")
endforeach()
if(NOT CuFile_HEADER AND EXISTS "${CUDA_HEADERS_INCLUDE_DIR}/cufile.h")
  set(CuFile_HEADER "${CUDA_HEADERS_INCLUDE_DIR}/cufile.h")
endif()
if(Kvikio_HEADER AND RapidsLogger_HEADER AND CuFile_HEADER)
  cmake_path(GET Kvikio_HEADER PARENT_PATH _folder)
  file(STRINGS "${_folder}/version_config.hpp" _lines REGEX "define KvikIO_VERSION_(MAJOR|MINOR) ")
  string(REGEX REPLACE ".*MAJOR ([0-9]+).*MINOR ([0-9]+).*" "\\1.\\2" Kvikio_VERSION "${_lines}")
  cmake_path(GET _folder PARENT_PATH Kvikio_INCLUDE_DIR)
  cmake_path(GET Kvikio_INCLUDE_DIR PARENT_PATH _root)
  set(Kvikio_LIBRARY "${_root}/lib64/libkvikio.so")
  cmake_path(GET RapidsLogger_HEADER PARENT_PATH _folder)
  cmake_path(GET _folder PARENT_PATH RapidsLogger_INCLUDE_DIR)
  cmake_path(GET RapidsLogger_INCLUDE_DIR PARENT_PATH _root)
  set(RapidsLogger_LIBRARY "${_root}/lib64/librapids_logger.so")
  cmake_path(GET CuFile_HEADER PARENT_PATH CuFile_INCLUDE_DIR)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Kvikio
  REQUIRED_VARS Kvikio_LIBRARY RapidsLogger_LIBRARY CuFile_INCLUDE_DIR VERSION_VAR Kvikio_VERSION
  REASON_FAILURE_MESSAGE "optional, install with: pip install --no-deps libkvikio-cu13==26.10.* rapids-logger==0.3.* nvidia-cufile==1.*")
if(Kvikio_FOUND AND NOT TARGET Kvikio::kvikio)
  add_library(Kvikio::rapids_logger SHARED IMPORTED)
  set_target_properties(Kvikio::rapids_logger PROPERTIES IMPORTED_LOCATION "${RapidsLogger_LIBRARY}")
  add_library(Kvikio::kvikio SHARED IMPORTED)
  set_target_properties(Kvikio::kvikio PROPERTIES
    IMPORTED_LOCATION "${Kvikio_LIBRARY}"
    INTERFACE_COMPILE_DEFINITIONS "KVIKIO_CUFILE_FOUND;KVIKIO_CUFILE_VERSION_API_FOUND;KVIKIO_LIBCURL_FOUND;BS_THREAD_POOL_ENABLE_PAUSE=1"
    INTERFACE_INCLUDE_DIRECTORIES "${Kvikio_INCLUDE_DIR};${RapidsLogger_INCLUDE_DIR};${CuFile_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "Kvikio::rapids_logger")
endif()
