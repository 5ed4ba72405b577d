// Objects with threads, as Python has them: in a forked child they are left alone.
//
// A child has its parent's objects and none of its threads. Python may come to destroy such an
// object there at any time, when it collects garbage, and whoever then waited for its threads would
// wait for ever.
#pragma once

#include <cstdint>
#include <memory>

#include "io/fork_guard.h"

namespace hicache {

/// Deletes what was made in this process.
class DeleteWhereMade {
 public:
  template <typename Object>
  void operator()(Object* object) const {
    if (fork_count() == made_in_) delete object;
  }

 private:
  uint32_t made_in_ = fork_count();
};

template <typename Object>
using OwnProcessPtr = std::unique_ptr<Object, DeleteWhereMade>;

template <typename Object>
OwnProcessPtr<Object> of_own_process(std::unique_ptr<Object> object) {
  return OwnProcessPtr<Object>(object.release());
}

}  // namespace hicache
