// Puts an Interceptor in front of every operator, also of those that are registered later.
#pragma once

namespace tierpage {

// Once per process; later calls do nothing.
void install_interceptors();

// Looks at every operator, and puts an interceptor in front of those that are new or run other kernels than before. The
// dispatcher tells of new operators with its mutex held, so they wait for this: it is called by the next operator, and
// by the package once a library has been loaded, whose first operator may be its own.
void register_pending();

}  // namespace tierpage
