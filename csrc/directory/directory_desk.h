// Where encoded requests meet the directory: each is decoded, applied, and its reply encoded. It
// knows no sockets; who calls seals frames, carries out effects and has the core advance.
//
// Threads: one owner.
#pragma once

#include <span>
#include <vector>

#include "directory/directory.h"
#include "directory/directory_messages.h"

namespace hicache {

class DirectoryDesk {
 public:
  explicit DirectoryDesk(Directory& directory) : directory_(directory) {}

  /// Appends the reply of `op` to `frame`; false: the request is malformed.
  bool answer(DirectoryOp op, std::span<const uint8_t> payload, SessionId session, uint64_t now_ms,
              std::vector<uint8_t>& frame);

 private:
  template <typename Request, typename Apply>
  static bool reply_to(std::span<const uint8_t> payload, std::vector<uint8_t>& frame, Apply apply);

  Directory& directory_;
  LocateRequest locate_request_;  // Kept to save allocations.
  LocateReply locate_reply_;
};

}  // namespace hicache
