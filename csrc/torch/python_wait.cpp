// Waiting without the GIL: see python_wait.h.
#include "torch/python_wait.h"

#include <Python.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <torch/csrc/Exceptions.h>

namespace tierpage {
namespace {

constexpr uint32_t kSliceMilliseconds = 50;  // how long Ctrl-C may go unnoticed

// Gives the GIL up for its lifetime if this thread holds it. Most operators run without it already.
class GilRelease {
 public:
  GilRelease() {
    if (Py_IsInitialized() != 0 && PyGILState_Check() != 0) saved_ = PyEval_SaveThread();
  }
  ~GilRelease() { take_back(); }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

  bool released() const { return saved_ != nullptr; }
  void take_back() {
    if (saved_ != nullptr) PyEval_RestoreThread(saved_);
    saved_ = nullptr;
  }
  void release_again() { saved_ = PyEval_SaveThread(); }

 private:
  PyThreadState* saved_ = nullptr;
};

bool on_main_thread() { return syscall(SYS_gettid) == getpid(); }

// True when a handler raised; the exception is then moved into `error`.
bool signal_raised(GilRelease& gil, python_error& error) {
  if (Py_IsInitialized() == 0 || !on_main_thread()) return false;
  bool raised = false;
  if (gil.released()) {
    gil.take_back();
    raised = PyErr_CheckSignals() != 0;
    if (raised) error.persist();
    gil.release_again();
  } else {
    const PyGILState_STATE held = PyGILState_Ensure();
    raised = PyErr_CheckSignals() != 0;
    if (raised) error.persist();
    PyGILState_Release(held);
  }
  return raised;
}

}  // namespace

int32_t wait_without_gil(const tp_engine_api* engine, tp_scope* scope) {
  GilRelease gil;
  int32_t code = TP_WAIT;
  while (code == TP_WAIT) {
    code = engine->wait(scope, kSliceMilliseconds);
    if (code != TP_WAIT) break;
    python_error error;
    if (signal_raised(gil, error)) {
      engine->cancel(scope);
      // The message is kept with the exception, so that it survives the operators that unwind.
      throw python_error(std::move(error));
    }
  }
  return code;
}

int32_t wait_without_signals(const tp_engine_api* engine, tp_scope* scope) {
  const GilRelease gil;
  int32_t code = TP_WAIT;
  while (code == TP_WAIT) code = engine->wait(scope, kSliceMilliseconds);
  return code;
}

void wait_without_gil(const std::function<bool(uint32_t)>& slice) {
  GilRelease gil;
  while (!slice(kSliceMilliseconds)) {
    python_error error;
    if (signal_raised(gil, error)) throw python_error(std::move(error));
  }
}

GilReleased::GilReleased() {
  if (Py_IsInitialized() != 0 && PyGILState_Check() != 0) saved_ = PyEval_SaveThread();
}

GilReleased::~GilReleased() {
  if (saved_ != nullptr) PyEval_RestoreThread(static_cast<PyThreadState*>(saved_));
}

}  // namespace tierpage
