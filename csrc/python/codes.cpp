// How a failure leaves the engine for Python, and the proof that its two sets of codes are one. A test holds the count
// in the torch library and the names in Python against this list (tests/python/test_borders.py).
#include <iterator>

#include "csrc_python.h"
#include "engine/engine_api.h"

namespace py = pybind11;

namespace tierpage {
namespace {

struct Code {
  const char* name;  // in python/tierpage/errors.py
  StatusCode code;
  tp_code number;
};

constexpr Code kCodes[] = {
    {"OK", StatusCode::kOk, TP_OK},
    {"WAIT", StatusCode::kWait, TP_WAIT},
    {"OUT_OF_MEMORY", StatusCode::kOutOfMemory, TP_OUT_OF_MEMORY},
    {"STORAGE_ERROR", StatusCode::kStorageError, TP_STORAGE_ERROR},
    {"STORAGE_FULL", StatusCode::kStorageFull, TP_STORAGE_FULL},
    {"CORRUPT_PAGE", StatusCode::kCorruptPage, TP_CORRUPT_PAGE},
    {"INVALID_ARGUMENT", StatusCode::kInvalidArgument, TP_INVALID_ARGUMENT},
    {"UNAVAILABLE", StatusCode::kUnavailable, TP_UNAVAILABLE},
    {"INTERRUPTED", StatusCode::kInterrupted, TP_INTERRUPTED},
    {"PAGER_DEAD", StatusCode::kPagerDead, TP_PAGER_DEAD},
    {"INTERNAL", StatusCode::kInternal, TP_INTERNAL},
};

constexpr bool agree() {
  for (int i = 0; i < static_cast<int>(std::size(kCodes)); ++i) {
    if (static_cast<int>(kCodes[i].code) != i || static_cast<int>(kCodes[i].number) != i) return false;
  }
  return true;
}
static_assert(agree(),
              "StatusCode (core/model/status.h) and tp_code (engine/engine_api.h) differ, or leave a number out");
static_assert(std::size(kCodes) == TP_INTERNAL + 1, "the last code is missing in this list");

}  // namespace

void raise_error(const Status& status) {
  const py::object type = py::module_::import("tierpage._C").attr("EngineError");
  const py::object error = type(static_cast<int>(status.code), status.message, status.system_error);
  PyErr_SetObject(type.ptr(), error.ptr());
  throw py::error_already_set();
}

py::dict status_codes() {
  py::dict out;
  for (const Code& code : kCodes) out[code.name] = static_cast<int>(code.number);
  return out;
}

}  // namespace tierpage
