// The exceptions that leave this library, and how an engine's code becomes one of them.
#pragma once

#include <Python.h>

#include <c10/util/Exception.h>
#include <torch/csrc/Exceptions.h>

#include <cstdint>
#include <string>

namespace tierpage {

inline constexpr int32_t kErrorTypeCount = 11;  // codes of tp_code

// Becomes the Python class that was given for its code. torch translates every subclass of PyTorchError by its
// python_type(), on whichever thread it was thrown.
class PagerError : public ::torch::PyTorchError {
 public:
  PagerError(int32_t code, std::string message);
  PyObject* python_type() override;
  int32_t code() const { return code_; }

 private:
  int32_t code_;
};

// Out of memory while an operator runs: torch's own kernels catch c10::OutOfMemoryError (cuDNN's algorithm search
// does), so inside an operator it has to be one. The outermost operator turns it into a PagerError.
class PagedOutOfMemoryError : public c10::OutOfMemoryError {
 public:
  explicit PagedOutOfMemoryError(const std::string& message) : c10::OutOfMemoryError(message) {}
};

// Takes a reference to each class. The GIL must be held.
void set_error_types(PyObject* const* error_types);
PyObject* error_type(int32_t code);

// Throws the exception for `code`: PagedOutOfMemoryError when an operator is running, else PagerError.
[[noreturn]] void raise_code(int32_t code, const std::string& message, bool inside_operator);

}  // namespace tierpage
