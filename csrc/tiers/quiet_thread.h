// Starts tierpage's own threads: named, and with asynchronous signals blocked, so that a user's signal handler
// (Python's included) never runs in one of them and SIGXFSZ or SIGPIPE caused there never ends the process.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <system_error>
#include <thread>
#include <utility>

#include "core/model/status.h"

namespace tierpage {

// Blocks what is inherited by threads started while it lives; restores the caller's mask.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t blocked;
    sigfillset(&blocked);
    // Raised by the thread's own instruction: blocking these would only hide the crash from the user's crash handler.
    for (int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT}) sigdelset(&blocked, own);
    pthread_sigmask(SIG_SETMASK, &blocked, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

// True in a thread that was started here.
inline bool& on_quiet_thread() {
  static thread_local bool quiet = false;
  return quiet;
}

// `name` has at most 15 characters.
template <class Body>
Status start_quiet_thread(const char* name, Body&& body, std::thread* thread) {
  SignalsBlocked signals_blocked;
  try {
    *thread = std::thread([body = std::forward<Body>(body)]() mutable {
      on_quiet_thread() = true;
      body();
    });
  } catch (const std::system_error& error) {
    return Status::error(StatusCode::kUnavailable,
                         std::string("cannot start thread ") + name + ": " + error.what() + " (see ulimit -u)",
                         error.code().value());
  }
  pthread_setname_np(thread->native_handle(), name);
  return Status::success();
}

}  // namespace tierpage
