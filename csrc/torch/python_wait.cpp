// Waiting without the GIL: see python_wait.h.
#include "torch/python_wait.h"

#include <Python.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <torch/csrc/Exceptions.h>

#include <chrono>
#include <utility>

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

// Whether Ctrl-C waits for Python's own handler; KeyboardInterrupt is set then. With the GIL held. Runs no Python code,
// because the interpreter would run all handlers first.
bool ctrl_c() {
  PyObject* const name = PyUnicode_FromString("_signal");
  PyObject* const module = name != nullptr ? PyImport_GetModule(name) : nullptr;
  PyObject* const handler = module != nullptr ? PyObject_CallMethod(module, "getsignal", "i", SIGINT) : nullptr;
  PyObject* const own = handler != nullptr ? PyObject_GetAttrString(module, "default_int_handler") : nullptr;
  const bool raises = own != nullptr && handler == own && PyOS_InterruptOccurred() != 0;
  for (PyObject* object : {own, handler, module, name}) Py_XDECREF(object);
  if (own == nullptr) PyErr_Clear();
  if (raises) PyErr_SetNone(PyExc_KeyboardInterrupt);
  return raises;
}

// True when a handler raised; the exception is then moved into `error`.
bool signal_raised(GilRelease& gil, const std::function<bool()>& look, python_error& error) {
  if (Py_IsInitialized() == 0 || !on_main_thread()) return false;
  bool raised = false;
  if (gil.released()) {
    gil.take_back();
    raised = look();
    if (raised) error.persist();
    gil.release_again();
  } else {
    const PyGILState_STATE held = PyGILState_Ensure();
    raised = look();
    if (raised) error.persist();
    PyGILState_Release(held);
  }
  return raised;
}

}  // namespace

int32_t wait_without_signals(const tp_engine_api* engine, tp_scope* scope) {
  const GilRelease gil;
  int32_t code = TP_WAIT;
  while (code == TP_WAIT) code = engine->wait(scope, kSliceMilliseconds);
  return code;
}

void wait_without_gil(const std::function<bool(uint32_t)>& slice, const std::function<bool()>& run_handlers) {
  GilRelease gil;
  const auto patient_until = std::chrono::steady_clock::now() + std::chrono::seconds(kPatienceSeconds);
  while (!slice(kSliceMilliseconds)) {
    if (Uninterrupted::now()) continue;
    const bool patient = std::chrono::steady_clock::now() < patient_until;
    python_error error;
    // The message is kept with the exception, so that it survives the operators that unwind.
    if (signal_raised(gil, patient ? std::function<bool()>(&ctrl_c) : run_handlers, error))
      throw python_error(std::move(error));
  }
}

GilReleased::GilReleased() {
  if (Py_IsInitialized() != 0 && PyGILState_Check() != 0) saved_ = PyEval_SaveThread();
}

GilReleased::~GilReleased() {
  if (saved_ != nullptr) PyEval_RestoreThread(static_cast<PyThreadState*>(saved_));
}

}  // namespace tierpage
