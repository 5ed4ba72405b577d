// Counts a call that touches the caller's memory, so that disconnect() can wait for it. Internal to
// the client.
#pragma once

#include "store/client.h"

namespace hicache {

class Client::RunningCall {
 public:
  explicit RunningCall(Client& client) : client_(client) {
    std::lock_guard lock(client_.mutex_);
    ++client_.running_calls_;
  }
  ~RunningCall() {
    std::lock_guard lock(client_.mutex_);
    if (--client_.running_calls_ == 0) client_.call_ended_.notify_all();
  }
  RunningCall(const RunningCall&) = delete;
  RunningCall& operator=(const RunningCall&) = delete;

 private:
  Client& client_;
};

}  // namespace hicache
