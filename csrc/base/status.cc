#include "base/status.h"

#include <cstring>

namespace hicache {

std::string_view code_name(Code code) {
  switch (code) {
    case Code::kOk:
      return "Ok";
    case Code::kNotFound:
      return "NotFound";
    case Code::kAlreadyExists:
      return "AlreadyExists";
    case Code::kBusy:
      return "Busy";
    case Code::kTimeout:
      return "Timeout";
    case Code::kUnavailable:
      return "Unavailable";
    case Code::kNotLeader:
      return "NotLeader";
    case Code::kLeaseExpired:
      return "LeaseExpired";
    case Code::kNoSpace:
      return "NoSpace";
    case Code::kCorrupt:
      return "Corrupt";
    case Code::kInvalidArgument:
      return "InvalidArgument";
    case Code::kUnsupported:
      return "Unsupported";
    case Code::kCancelled:
      return "Cancelled";
    case Code::kClosed:
      return "Closed";
    case Code::kIo:
      return "Io";
    case Code::kInternal:
      return "Internal";
    case Code::kOverQuota:
      return "OverQuota";
  }
  return "Unknown";
}

Status io_error(std::string_view tried, int error_number) {
  std::string message(tried);
  message += ": ";
  message += std::strerror(error_number);
  return Status(Code::kIo, std::move(message));
}

}  // namespace hicache
