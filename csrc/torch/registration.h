// Puts an Interceptor in front of every operator, also of those that are registered later.
#pragma once

#include <atomic>

namespace tierpage {

// Once per process; later calls do nothing.
void install_interceptors();

// A library registers operators with the dispatcher's mutex held, so they are queued and taken up by the next operator.
extern std::atomic<bool> pending_registrations;
inline bool registrations_pending() { return pending_registrations.load(std::memory_order_relaxed); }
void register_pending();

}  // namespace tierpage
