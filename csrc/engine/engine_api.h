// The C interface between the engine (module _C, knows no torch) and the torch library (knows no engine types).
// Plain C layout, so that the two may be built by different compilers. The table lives as long as the process.
//
// Words. A *scope* belongs to one thread and spans one outermost operator: pages that the operator uses stay resident
// and mapped until the scope closes. Nested operators add to the open scope.
//
// Protocol of one outermost operator in one thread (no call blocks except wait; none touches Python):
//
//   scope_open(s, native_stream)                    when depth goes 0 -> 1; only stores, no lock
//   rc = begin(s, op, accesses, n)                  for it and for every nested operator with paged arguments
//   while (rc == TP_WAIT) rc = wait(s, 50);         the caller releases the GIL and checks signals between slices
//   ... the kernel; allocate()/free() happen inside ...
//   seen(s, pointers, n)                            storages of the results: they are tensors, hence evictable later
//   scope_close(s, native_stream)                   when depth goes 1 -> 0: records or owes a fence, unpins
//
// On TP_INTERRUPTED from the caller's own signal check call cancel(s), then close the scope as usual.
// Any code > TP_WAIT is an error; error_message(s) holds its text until the next call on that scope.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TIERPAGE_ENGINE_API_VERSION 11u

// Numbers equal to tierpage::StatusCode.
enum tp_code {
  TP_OK = 0,
  TP_WAIT = 1,
  TP_OUT_OF_MEMORY = 2,
  TP_STORAGE_ERROR = 3,
  TP_STORAGE_FULL = 4,
  TP_CORRUPT_PAGE = 5,
  TP_INVALID_ARGUMENT = 6,
  TP_UNAVAILABLE = 7,
  TP_INTERRUPTED = 8,
  TP_PAGER_DEAD = 9,
  TP_INTERNAL = 10
};

typedef struct tp_scope tp_scope;      // opaque
typedef struct tp_runtime tp_runtime;  // opaque: the engine behind a table

enum { TP_READ = 1, TP_WRITE = 2 };

#define TP_NO_SOURCE UINT64_MAX  // the place of a region whose content lies in no file
#define TP_NO_STREAM UINT64_MAX  // a stream that is not known

// Bytes [address, address + bytes) of the reserved range, which one argument of an operator covers.
typedef struct tp_access {
  uint64_t address;
  uint64_t bytes;
  uint32_t mode;  // TP_READ | TP_WRITE
  uint32_t reserved;
} tp_access;

typedef struct tp_operator {
  const char* name;  // "aten::addmm", lives for ever
  uint64_t hash;     // stable across runs: a hash of name and overload
} tp_operator;

// Regions on which work goes on when their operator has returned.
typedef struct tp_kept_api {
  // Keeps regions, which the open scope has pinned, resident after it has closed, until let_go, which names one of the
  // addresses. 0: nothing is kept. Who lacks room waits for let_go if the work ends by itself, and not if it ends only
  // after something that the program does.
  uint64_t (*keep)(const uint64_t* addresses, size_t count, int32_t ends_by_itself);
  void (*let_go)(uint64_t address, uint64_t handle);
  // `hook` is called, without any lock, every now and then while a thread waits in a call of the user's.
  void (*set_wait_hook)(void (*hook)(void));
  // An object was made through which somebody uses the region, or has ended (1, -1): an array, a DLPack capsule. Until
  // then the region is used although nobody touches it again. Touch it first.
  void (*view)(uint64_t address, int32_t change);
} tp_kept_api;

// Calls of the device's driver that nobody announces, where somebody stands at its door (csrc/guard).
typedef struct tp_launch_api {
  // One call of the device's driver that uses paged memory which the open scope has not announced, or on another stream
  // than the scope's, or outside any scope. Before the call: these pages are made resident and pinned (TP_WAIT: wait(),
  // as for an operator). After it: they stay until what was queued on the stream until now has finished. At most one at
  // a time per scope; where end is missed, the pages of that launch stay for good.
  int32_t (*begin)(tp_scope*, const tp_access* accesses, size_t count, uint64_t native_stream);
  void (*end)(tp_scope*, uint64_t native_stream);
  // While *watched is 0 all paged memory is resident and stays so: nobody need look at launches.
  const int32_t* watched;
  // `hook` is called, once, in a thread of the engine's before the first page leaves.
  void (*set_hook)(void (*hook)(void));
  // A graph begins (1) or ends (-1) to be recorded. The end goes to the engine that was told of the beginning, or to
  // any other of the same kind of device.
  void (*note_capture)(tp_runtime*, int32_t change);
  // 1 in a thread of the engine's own, whose copies are no program's.
  int32_t (*own_thread)(void);
} tp_launch_api;

typedef struct tp_engine_api {
  uint32_t version;
  uint32_t size;  // sizeof(tp_engine_api)

  // Constants of the running engine. A pointer p is ours iff p - range_base < range_bytes (unsigned).
  uint64_t range_base;
  uint64_t range_bytes;
  uint64_t min_paged_bytes;
  uint64_t granule_bytes;  // a power of two: regions begin at multiples of it and take whole ones
  int32_t device_type;     // 0: CPU tensors, 1: CUDA tensors
  int32_t device_index;
  tp_runtime* runtime;  // for calls that have to reach this engine, though another one may be in force by then

  // Scopes. One per thread, made on first use, destroyed at thread end (from a thread-local destructor).
  tp_scope* (*scope_create)(void);
  void (*scope_destroy)(tp_scope*);
  // The stream is the one that scope_close will name: memory for another one is marked there when it is freed.
  void (*scope_open)(tp_scope*, uint64_t native_stream);
  int32_t (*begin)(tp_scope*, const tp_operator*, const tp_access*, size_t count);
  int32_t (*wait)(tp_scope*, uint32_t timeout_ms);  // TP_WAIT when the time is over
  void (*cancel)(tp_scope*);
  void (*seen)(tp_scope*, const uint64_t* addresses, size_t count);
  int32_t (*scope_close)(tp_scope*, uint64_t native_stream);  // an error only in paranoid mode
  const char* (*error_message)(tp_scope*);

  // Memory. allocate with TP_WAIT: wait(scope) as above, then allocate_result(scope) gives the address.
  // Inside an open scope the new region is pinned by it; outside, it stays resident until first seen. `place`: where
  // its content lies in a file that the engine has as a source (nothing of it is read before it is used), or
  // TP_NO_SOURCE. With a place it is refused inside a scope. wants() is not asked then: whoever names a place means it.
  int32_t (*wants)(uint64_t bytes);  // 1: this allocation is ours (size, scope="explicit", process not forked)
  int32_t (*allocate)(tp_scope*, uint64_t bytes, uint64_t native_stream, uint64_t place, uint64_t* address);
  uint64_t (*allocate_result)(tp_scope*);
  void (*deallocate)(uint64_t address);  // any thread; never blocks
  // Work that no scope's end marks was queued on the stream or will be before the region is freed (raw kernels).
  // TP_NO_STREAM: on any.
  void (*record_stream)(uint64_t address, uint64_t native_stream);
  uint64_t (*region_bytes)(uint64_t address, uint64_t* region_base);  // 0: not a live region

  // An access that no operator announces (data_ptr, numpy, DLPack): fetches the region and keeps it resident. How long
  // it is used is a guess: until `keep` more scopes of this thread have closed, or somebody else needs the room and
  // nothing else can leave, what was touched first going first. 0: it stays until the region is freed, whatever others
  // need. May wait on `scope` as begin() does.
  int32_t (*touch)(tp_scope*, uint64_t address, uint32_t keep);
  // 1: the open scope has the whole region pinned, so that what it uses is announced already.
  int32_t (*scope_holds)(tp_scope*, uint64_t address);

  // Operators over lists are split into runs of at most this many bytes, counted in whole
  // granules, when their pages exceed it.
  uint64_t (*list_run_bytes_max)(void);
  // Whether a list operator over paged tensors gains by running later, index by index (torch/deferral.h), and all tiers
  // together have room for the `kept_bytes` that it then keeps from being freed.
  int32_t (*may_defer)(uint64_t kept_bytes);
  // 1: one of these regions (addresses of their first bytes) is held: by a pin, a touch, a raw pointer that escaped or
  // a running operator.
  int32_t (*held)(const uint64_t* regions, size_t count);
  // Makes `bytes` of device memory free for the native allocator by evicting, and keeps them free of pages until
  // room_settled(). Returns `bytes`, or 0 where they cannot be had: nothing is kept then. May be called with the native
  // allocator locked: it waits for pages that are on their way out, never for a pin to end.
  uint64_t (*make_room)(tp_runtime*, uint64_t bytes);
  // The same with no lock held: it waits for the pins of other threads' operators as well, up to so long (TP_WAIT: call
  // it again). `scope` is this thread's, whose own pins cannot end meanwhile, or null. TP_OK: they are kept free.
  int32_t (*await_room)(tp_runtime*, tp_scope* scope, uint64_t bytes, uint32_t timeout_ms);
  // While *wants_times is not 0, call launching() after begin() was granted and before the kernels are launched: the
  // engine wants to know how long operators keep the device busy. Read it without a lock; a late answer does no harm.
  const int32_t* wants_times;
  void (*launching)(tp_scope*, uint64_t native_stream);
  // 1 in a child process after fork: paged tensors of the parent cannot be used here.
  int32_t (*forked)(void);
  // This stream may be destroyed while the engine lives (the framework did not make it): call it before scope_close
  // names the stream for the first time. The end of each operator on it is marked at once, never later.
  void (*foreign_stream)(uint64_t native_stream);
  // The native allocator has taken `bytes` that make_room or await_room kept for it, or will not take them. Of the
  // device it holds `reserved` now, which counts against device_budget. Each of these that kept something is followed
  // by one such call to the same engine, or a part of one; with 0 bytes it only tells what is held.
  void (*room_settled)(tp_runtime*, uint64_t bytes, uint64_t reserved);
  // Kernels and copies of another device of the same kind use paged memory from now on, where it is. Waits until they
  // can; an error code where the device cannot be let in.
  int32_t (*allow_peer)(int32_t device_index);
  tp_kept_api kept;
  tp_launch_api launches;
} tp_engine_api;

// Exported by the torch library (one .so per torch minor version); called through ctypes with the GIL held.
//   const char* tierpage_torch_version(void)        "2.13": the torch that it was built for
//   int32_t tierpage_torch_install(void)             registers the interceptor once per process; 0 or an error code
//   int32_t tierpage_torch_take_up(void)             looks for operators that libraries have registered since,
//                                                    so that their first call is seen; 0 or an error code
//   int32_t tierpage_torch_attach(const tp_engine_api*, PyObject* const* error_types)
//                                                    routes operators and allocations to this engine from now on.
//                                                    error_types[code] is the exception class for each tp_code
//   void tierpage_torch_detach(void)                 back to plain torch; live regions keep their deleter
//   const char* tierpage_torch_last_error(void)
//   uint64_t tierpage_torch_counter(int32_t which)   0: operators seen, 1: operators with paged arguments,
//                                                    2: list operators split, 3: raw pointer touches,
//                                                    4: indices of list operators deferred, 5: launches that the
//                                                    guard pinned memory for
//   int32_t tierpage_torch_set_option(const char* name, int32_t value)
//                                                    "materializer": 1 (the default) arms storages against accesses
//                                                    that no operator announces (torch >= 2.13), 0 does not;
//                                                    "deferral": 1 (the default) lets fused optimizers run later;
//                                                    "typed": 1 (the default) spares common operators the boxing of
//                                                    their arguments
//   const char* tierpage_torch_open_guard(void)      looks at launches from now on (CUDA); "" or why that cannot be
//   int32_t tierpage_torch_close_guard(void)         gives CUPTI back, for a profiler; what graphs use is held from
//                                                    then on. 0, or an error code with the Python error set
//   const char* tierpage_torch_typed_operators(void) the operators to which "typed" applies, one a line
//   int32_t tierpage_torch_run_deferred(uint64_t address)   runs what was deferred of this region, of all for 0;
//                                                    returns 0, or an error code with the Python error set
//   void tierpage_torch_ask_works(void)              lets collectives that have ended let go of what they used
//   void tierpage_torch_end_batch(void)              a batch of collectives has been queued whole: what this thread's
//                                                    used in it is let go of when that has run
//   int32_t tierpage_torch_touch(uint64_t address)   touch() for this thread with the GIL released while waiting;
//                                                    0, or an error code with the Python error set
//   int32_t tierpage_torch_fill_storage(uint64_t storage_impl, uint64_t place, uint64_t bytes)
//                                                    gives an empty StorageImpl a region of so many bytes whose content
//                                                    lies at `place`; 0, or an error code with the Python error set
//   int32_t tierpage_torch_note_stream(uint64_t address)     raw work may use the region on the stream that is current
//   void tierpage_torch_view(uint64_t address, int32_t change)   view() of this region's engine
//   int32_t tierpage_torch_watch_capsule(uint64_t address, PyObject* capsule)   the same for a new DLPack capsule,
//                                                    whose end comes when its consumer calls its deleter
//   uint64_t tierpage_torch_storage_address(uint64_t storage_impl)   first byte of a StorageImpl; fetches nothing

#ifdef __cplusplus
}
#endif
