# Finds cuda.h and cuda_runtime_api.h: headers only, nothing is linked (libcuda is opened at run time).
# Looks in CUDA_HEADERS_INCLUDE_DIR, a toolkit, and the nvidia-cuda-runtime package of the building Python.
# Sets CUDA_HEADERS_INCLUDE_DIR.
if(NOT CUDA_HEADERS_INCLUDE_DIR)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
      "import glob, os, sys\nfor p in sys.path:\n  for f in sorted(glob.glob(os.path.join(p, 'nvidia', '*', 'include', 'cuda_runtime_api.h'))):\n    d = os.path.dirname(f)\n    if os.path.exists(os.path.join(d, 'cuda.h')): print(d); sys.exit()"
    OUTPUT_VARIABLE _package_dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_path(CUDA_HEADERS_INCLUDE_DIR NAMES cuda.h
    HINTS "$ENV{CUDA_HOME}/include" "$ENV{CUDA_PATH}/include" "${_package_dir}"
    PATHS /usr/local/cuda/include)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(CudaHeaders REQUIRED_VARS CUDA_HEADERS_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "install them with: pip install nvidia-cuda-runtime (headers only, 2 MB)")
