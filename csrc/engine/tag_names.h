// The names that the user gives to groups of tensors, and their numbers in the core.
//
// Not thread safe: under the runtime's mutex.
#pragma once

#include <algorithm>
#include <map>
#include <string>

#include "core/pager/pager.h"

namespace tierpage {

class TagNames {
 public:
  TagId add(const std::string& name) { return ids_.emplace(name, static_cast<TagId>(ids_.size() + 1)).first->second; }
  bool empty() const { return ids_.empty(); }
  // 0: nobody ever named it.
  TagId find(const std::string& name) const {
    const auto known = ids_.find(name);
    return known == ids_.end() ? 0 : known->second;
  }
  // Empty for 0. Names stand in a map and stay where they are.
  const char* name_of(TagId tag) const {
    const auto named = std::find_if(ids_.begin(), ids_.end(), [tag](const auto& entry) { return entry.second == tag; });
    return tag == 0 || named == ids_.end() ? "" : named->first.c_str();
  }

 private:
  std::map<std::string, TagId> ids_;
};

}  // namespace tierpage
