// Exceptions: see errors.h.
#include "torch/errors.h"

#include <array>
#include <atomic>

#include "engine/engine_api.h"

namespace tierpage {
namespace {

// Classes are kept for ever: an exception may be translated after detach.
std::array<std::atomic<PyObject*>, kErrorTypeCount> error_classes{};

}  // namespace

void set_error_types(PyObject* const* error_types) {
  for (int32_t code = 0; code < kErrorTypeCount; ++code) {
    PyObject* error_class = error_types != nullptr ? error_types[code] : nullptr;
    if (error_class != nullptr && !PyExceptionClass_Check(error_class)) error_class = nullptr;
    Py_XINCREF(error_class);
    error_classes[static_cast<size_t>(code)].store(error_class, std::memory_order_release);
  }
}

PyObject* error_type(int32_t code) {
  PyObject* error_class = nullptr;
  if (code >= 0 && code < kErrorTypeCount)
    error_class = error_classes[static_cast<size_t>(code)].load(std::memory_order_acquire);
  return error_class != nullptr ? error_class : PyExc_RuntimeError;
}

PagerError::PagerError(int32_t code, std::string message) : PyTorchError(std::move(message)), code_(code) {}

PyObject* PagerError::python_type() { return error_type(code_); }

void raise_code(int32_t code, const std::string& message, bool inside_operator) {
  if (code == TP_OUT_OF_MEMORY && inside_operator) throw PagedOutOfMemoryError(message);
  throw PagerError(code, message);
}

}  // namespace tierpage
