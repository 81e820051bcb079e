// How a failure travels: a value with a code, a message and the system's error number. No layer below Python throws
// for an operating error; a broken invariant throws InternalError, which kills the pager but never the process.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace tierpage {

// The numbers are part of the C interface in engine/engine_api.h and of python/tierpage/errors.py.
enum class StatusCode : int32_t {
  kOk = 0,
  kWait = 1,             // not an error: the request is queued, wait for it
  kOutOfMemory = 2,      // cannot fit in the device budget
  kStorageError = 3,     // the NVMe tier failed (system_error holds errno)
  kStorageFull = 4,      // the NVMe tier has no room
  kCorruptPage = 5,      // what was read back is not what was written
  kInvalidArgument = 6,  // a value from the user cannot work
  kUnavailable = 7,      // the machine lacks something (driver, O_DIRECT, ...)
  kInterrupted = 8,      // the waiting thread was told to stop
  kPagerDead = 9,        // an earlier failure made the pager's state untrustworthy
  kInternal = 10,        // a defect in tierpage
};

struct [[nodiscard]] Status {
  StatusCode code = StatusCode::kOk;
  int32_t system_error = 0;  // errno or CUresult, 0 where there is none
  std::string message;       // what happened, with numbers; empty when ok

  bool ok() const { return code == StatusCode::kOk; }
  static Status success() { return {}; }
  static Status error(StatusCode code, std::string message, int32_t system_error = 0) {
    return Status{code, system_error, std::move(message)};
  }
};

// A defect of tierpage itself: an invariant does not hold.
class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

[[noreturn]] inline void fail_invariant(const char* expression, const char* file, int line) {
  throw InternalError(std::string("invariant broken: ") + expression + " at " + file + ":" + std::to_string(line));
}

}  // namespace tierpage

// Stays on in release builds. Raises InternalError; never aborts.
#define TP_ASSERT(expression) \
  ((expression) ? static_cast<void>(0) : ::tierpage::fail_invariant(#expression, __FILE__, __LINE__))
