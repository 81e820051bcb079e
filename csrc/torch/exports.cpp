// The C functions that the Python package calls through ctypes; documented at the end of engine/engine_api.h.
#include <Python.h>

#include <torch/headeronly/version.h>

#include <cstdint>
#include <exception>
#include <string>

#include "engine/engine_api.h"
#include "torch/allocator.h"
#include "torch/allocator_cuda.h"
#include "torch/capsules.h"
#include "torch/cuda_capture.h"
#include "torch/deferral.h"
#include "torch/deferred_table.h"
#include "torch/engine_link.h"
#include "torch/errors.h"
#include "torch/interceptor.h"
#include "torch/launch_guard.h"
#include "torch/pending_works.h"
#include "torch/raw_access.h"
#include "torch/registration.h"
#include "torch/typed_operators.h"

#define TIERPAGE_EXPORT extern "C" __attribute__((visibility("default")))
#define TIERPAGE_TEXT_(x) #x
#define TIERPAGE_TEXT(x) TIERPAGE_TEXT_(x)

namespace {

std::string last_error;  // guarded by the GIL

int32_t fail(int32_t code, std::string message) {
  last_error = std::move(message);
  return code;
}

// Nothing may leave a C function by an exception.
template <class Body>
int32_t guarded(Body body) {
  try {
    return body();
  } catch (const std::exception& error) {
    return fail(TP_INTERNAL, error.what());
  }
}

}  // namespace

TIERPAGE_EXPORT const char* tierpage_torch_version(void) {
  return TIERPAGE_TEXT(TORCH_VERSION_MAJOR) "." TIERPAGE_TEXT(TORCH_VERSION_MINOR);
}

TIERPAGE_EXPORT const char* tierpage_torch_last_error(void) { return last_error.c_str(); }

TIERPAGE_EXPORT int32_t tierpage_torch_install(void) {
  return guarded([] {
    tierpage::install_interceptors();
    return static_cast<int32_t>(TP_OK);
  });
}

TIERPAGE_EXPORT int32_t tierpage_torch_attach(const tp_engine_api* engine, PyObject* const* error_types) {
  return guarded([&] {
    if (engine == nullptr || engine->version != TIERPAGE_ENGINE_API_VERSION || engine->size < sizeof(tp_engine_api)) {
      return fail(TP_INVALID_ARGUMENT,
                  "the engine and the torch library of tierpage are of different versions; "
                  "install tierpage again");
    }
    if (engine->device_type == 0) {
      tierpage::install_cpu_allocator();
    } else if (!tierpage::install_cuda_allocator()) {
      return fail(TP_UNAVAILABLE,
                  "this torch was built without CUDA (libc10_cuda is not loaded); install a CUDA "
                  "build of torch, or enable tierpage with device=\"cpu\"");
    }
    tierpage::install_interceptors();
    tierpage::register_pending();
    tierpage::set_error_types(error_types);
    tierpage::remember_engine(engine);
    tierpage::attached_engine.store(engine, std::memory_order_release);
    if (engine->device_type != 0) tierpage::report_native_reserved(engine);
    return static_cast<int32_t>(TP_OK);
  });
}

TIERPAGE_EXPORT int32_t tierpage_torch_take_up(void) {
  return guarded([] {
    // Whoever registers operators meanwhile may wait for the GIL.
    struct Released {
      PyThreadState* state = PyEval_SaveThread();
      ~Released() { PyEval_RestoreThread(state); }
    } const released;
    const tp_engine_api* engine = tierpage::engine_now();
    if (engine != nullptr && engine->forked() != 0) return static_cast<int32_t>(TP_OK);  // tierpage is off in a child
    tierpage::register_pending();
    return static_cast<int32_t>(TP_OK);
  });
}

TIERPAGE_EXPORT uint64_t tierpage_torch_counter(int32_t which) {
  if (which < 0 || which >= tierpage::kCounterCount) return 0;
  return tierpage::counter_total(static_cast<tierpage::Counter>(which));
}

TIERPAGE_EXPORT int32_t tierpage_torch_set_option(const char* name, int32_t value) {
  const std::string option = name != nullptr ? name : "(null)";
  if (option == "deferral") {
    tierpage::DeferredTable::set_wanted(value != 0);
    return TP_OK;
  }
  if (option == "typed") {
    tierpage::typed_wanted.store(value != 0);
    return TP_OK;
  }
  if (option != "materializer") return fail(TP_INVALID_ARGUMENT, "no such option: " + option);
  if (value != 0 && !TIERPAGE_HAS_MATERIALIZER) {
    return fail(TP_UNAVAILABLE, "torch " TIERPAGE_TEXT(TORCH_VERSION_MAJOR) "." TIERPAGE_TEXT(
                                    TORCH_VERSION_MINOR) " has no storage hook; 2.13 is the first that has it");
  }
  tierpage::materializer_wanted.store(value != 0);
  return TP_OK;
}

TIERPAGE_EXPORT const char* tierpage_torch_open_guard(void) {
  static std::string refusal;  // guarded by the GIL
  refusal = tierpage::open_launch_guard();
  return refusal.c_str();
}

TIERPAGE_EXPORT const char* tierpage_torch_typed_operators(void) {
  static std::string names;  // guarded by the GIL
  names = tierpage::typed_operator_names();
  return names.c_str();
}

namespace {

// Errors become a code with the Python error set.
template <class Body>
int32_t raising(Body body) {
  try {
    body();
    return TP_OK;
  } catch (python_error& error) {
    error.restore();
    return TP_INTERRUPTED;
  } catch (tierpage::PagerError& error) {
    PyErr_SetString(error.python_type(), error.what());
    return error.code();
  } catch (const tierpage::PagedOutOfMemoryError& error) {
    PyErr_SetString(tierpage::error_type(TP_OUT_OF_MEMORY), error.msg().c_str());
    return TP_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return TP_INTERNAL;
  }
}

// Runs `access` on a live region.
template <class Access>
int32_t reach(uint64_t address, Access access) {
  const tp_engine_api* engine = tierpage::engine_for(tierpage::thread_state(), tierpage::engine_now());
  if (engine == nullptr || !tierpage::owns(*engine, reinterpret_cast<void*>(address))) return TP_OK;
  return raising([&] {
    uint64_t base = address;
    const uint64_t bytes = engine->forked() != 0 ? 1 : engine->region_bytes(address, &base);
    if (bytes > 0) access(engine, base, bytes);
  });
}

}  // namespace

TIERPAGE_EXPORT int32_t tierpage_torch_close_guard(void) {
  return raising([] { tierpage::close_launch_guard(); });
}

TIERPAGE_EXPORT void tierpage_torch_ask_works(void) { (void)tierpage::let_go_of_ended_works(); }

TIERPAGE_EXPORT void tierpage_torch_end_batch(void) { tierpage::let_go_of_batch(tierpage::thread_state()); }

TIERPAGE_EXPORT int32_t tierpage_torch_touch(uint64_t address) {
  return reach(address, [](const tp_engine_api* engine, uint64_t base, uint64_t bytes) {
    tierpage::raw_touch(engine, base, bytes);
  });
}

TIERPAGE_EXPORT void tierpage_torch_view(uint64_t address, int32_t change) {
  const tp_engine_api* engine = tierpage::engine_of(reinterpret_cast<void*>(address));
  if (engine != nullptr && engine->forked() == 0) engine->kept.view(address, change);
}

TIERPAGE_EXPORT int32_t tierpage_torch_watch_capsule(uint64_t address, PyObject* capsule) {
  return reach(address, [&](const tp_engine_api* engine, uint64_t base, uint64_t) {
    tierpage::watch_capsule(capsule, engine, base);
  });
}

TIERPAGE_EXPORT int32_t tierpage_torch_note_stream(uint64_t address) {
  return reach(address,
               [](const tp_engine_api* engine, uint64_t base, uint64_t) { tierpage::note_stream(engine, base); });
}

TIERPAGE_EXPORT int32_t tierpage_torch_fill_storage(uint64_t storage_impl, uint64_t place, uint64_t bytes) {
  return raising([&] {
    const tp_engine_api* engine = tierpage::engine_now();
    if (engine == nullptr || (engine->device_type != 0 && tierpage::pools_are_open())) {
      throw tierpage::PagerError(
          TP_UNAVAILABLE, engine == nullptr
                              ? "paging is disabled: nothing can be backed by a file"
                              : "no tensor can be backed by a file while a CUDA graph is captured or a memory pool of "
                                "torch is in use. Call tierpage.load outside of it.");
    }
    tierpage::fill_storage(engine, reinterpret_cast<c10::StorageImpl*>(storage_impl), place, bytes);
  });
}

TIERPAGE_EXPORT int32_t tierpage_torch_run_deferred(uint64_t address) {
  const tp_engine_api* engine = tierpage::engine_now();
  if (engine == nullptr) return TP_OK;
  return raising([&] {
    if (address != 0) {
      tierpage::settle_address(tierpage::thread_state(), engine, address);
    } else {
      tierpage::run_all_deferred(tierpage::thread_state(), engine);
    }
  });
}

// Tensors that operators no longer announce must not have anything deferred. The package has run it before; what fails
// here has failed there as well.
TIERPAGE_EXPORT void tierpage_torch_detach(void) {
  if (tierpage_torch_run_deferred(0) != TP_OK) PyErr_Clear();
  tierpage::attached_engine.store(nullptr, std::memory_order_release);
  tierpage::let_go_of_all_works();
}

// Address of a StorageImpl's first byte, without fetching it and without meeting a guard.
TIERPAGE_EXPORT uint64_t tierpage_torch_storage_address(uint64_t storage_impl) {
  auto* storage = reinterpret_cast<c10::StorageImpl*>(storage_impl);
  return reinterpret_cast<uint64_t>(storage->_mutable_data_ptr_no_checks().get());
}
