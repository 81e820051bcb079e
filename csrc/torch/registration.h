// Puts an Interceptor in front of every operator, also of those that are registered later.
#pragma once

namespace tierpage {

// Once per process; later calls do nothing.
void install_interceptors();

// A library registers operators with the dispatcher's mutex held, so they are queued; the next operator takes them up.
void register_pending();

}  // namespace tierpage
