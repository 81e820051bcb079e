// Uses a storage extension (storage_api.h): opens its library and gives the system calls of DirectStore that go through
// it, so that striping, checks and everything else of that store hold for the extension as well.
#pragma once

#include <string>

#include "core/model/status.h"
#include "tiers/block_store.h"
#include "tiers/storage_api.h"

namespace tierpage {

// Opens the library at `path`, which stays open for ever; kUnavailable, with the loader's words, where it does not
// load, is of another version, or finds that this process cannot use it. Once it has succeeded it answers at once.
Status load_storage_extension(const std::string& path);

// The loaded extension; nullptr before load_storage_extension() has succeeded.
const tp_storage_api* storage_extension();

// Reads and writes through the loaded extension, which opens each spill file at its first transfer and closes it with
// the spill file. With `peer_to_peer` that opening demands it.
const IoTable& extension_io_table(bool peer_to_peer = false);

}  // namespace tierpage
