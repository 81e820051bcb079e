// The C interface between the module _C and a storage extension: a library of its own that reads and writes the spill
// file through something that not every machine has (today: kvikio, csrc/kvikio). Plain C layout, so that the two may
// be built by different compilers. The table lives as long as the process.
//
// The extension exports one function:
//   const tp_storage_api* tierpage_storage_api(void);
//
// All calls may come from any thread and none throws. A call that fails returns a negative errno (or NULL), and
// error_message() gives the words for it in the same thread until its next call.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TIERPAGE_STORAGE_API_VERSION 1u
#define TIERPAGE_STORAGE_API_SYMBOL "tierpage_storage_api"

typedef struct tp_storage_file tp_storage_file;  // opaque

enum {
  // Device memory is read and written by the drive itself; open() fails where that cannot be for this file. Without
  // it, memory of the device passes through RAM inside the extension.
  TP_STORAGE_PEER_TO_PEER = 1
};

typedef struct tp_storage_api {
  uint32_t version;
  uint32_t size;     // sizeof(tp_storage_api)
  const char* name;  // "kvikio 26.10.0"

  // 0 if this process can use the extension at all.
  int32_t (*check)(void);
  // 0 if the machine may move bytes between a drive and device memory without RAM between them; the proof is open()
  // with TP_STORAGE_PEER_TO_PEER on the very file. Starts the library that does it, for the whole process.
  int32_t (*check_peer_to_peer)(void);

  // Opens once more the file behind `descriptor`, which stays the caller's; with direct I/O if the descriptor has it.
  tp_storage_file* (*open)(int32_t descriptor, uint32_t flags);
  void (*close)(tp_storage_file*);  // no call on the file may be under way

  // Bytes moved, perhaps fewer than asked for. `buffer` is host memory, or device memory with a context of its device.
  // Both block; several may run on one file at once.
  int64_t (*read)(tp_storage_file*, void* buffer, uint64_t bytes, uint64_t offset);
  int64_t (*write)(tp_storage_file*, const void* buffer, uint64_t bytes, uint64_t offset);

  const char* (*error_message)(void);
} tp_storage_api;

typedef const tp_storage_api* (*tp_storage_api_function)(void);

#ifdef __cplusplus
}
#endif
