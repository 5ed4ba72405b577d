#include "transfer/rdma/queue_pair.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <string>

#include "base/clock.h"

namespace hicache {
namespace {

constexpr uint8_t kHopLimit = 64;
constexpr uint8_t kNoReceiverTimer = 12;  // For SENDs, which nobody posts.
constexpr uint32_t k24Bits = 0xFFFFFF;

ibv_mtu mtu_code(uint16_t bytes) {
  return static_cast<ibv_mtu>(std::bit_width(bytes) - 8);  // IBV_MTU_256 is 1.
}

ibv_ah_attr address_vector(const RailRoute& route, const RailAddress& peer,
                           const RdmaSettings& settings) {
  ibv_ah_attr vector{};
  vector.port_num = route.port;
  vector.sl = settings.service_level;
  vector.dlid = peer.lid;
  constexpr size_t kSubnetSize = 8;  // Of a GID: packets to another one need it.
  const bool is_other_subnet =
      std::memcmp(route.address.gid.data(), peer.gid.data(), kSubnetSize) != 0;
  if (route.needs_gid || is_other_subnet) {
    vector.is_global = 1;
    std::memcpy(vector.grh.dgid.raw, peer.gid.data(), peer.gid.size());
    vector.grh.sgid_index = route.gid_index;
    vector.grh.hop_limit = kHopLimit;
    vector.grh.traffic_class = settings.traffic_class;
  }
  return vector;
}

}  // namespace

Result<QueuePair> QueuePair::make(std::shared_ptr<RdmaRail> rail, const RailRoute& route,
                                  ibv_cq* queue, Size size) {
  ibv_qp_init_attr wanted{};
  wanted.send_cq = queue;
  wanted.recv_cq = queue;
  wanted.qp_type = IBV_QPT_RC;
  wanted.cap.max_send_wr = std::max(size.requests, 1U);
  wanted.cap.max_recv_wr = 1;
  wanted.cap.max_send_sge = 1;
  wanted.cap.max_recv_sge = 1;
  wanted.cap.max_inline_data = size.inline_bytes;
  ibv_qp_init_attr got = wanted;
  ibv_qp* pair = rail->verbs().create_qp(rail->domain(), &got);
  if (pair == nullptr && errno == EINVAL && size.inline_bytes != 0) {
    wanted.cap.max_inline_data = 0;
    got = wanted;
    pair = rail->verbs().create_qp(rail->domain(), &got);
  }
  if (pair == nullptr) {
    return rail->error(Code::kNoSpace,
                       "ibv_create_qp(" + std::to_string(wanted.cap.max_send_wr) + " requests)",
                       errno,
                       "the device has max_qp = " + std::to_string(rail->limits().pairs_max) +
                           ", max_qp_wr = " + std::to_string(rail->limits().requests_max) +
                           "; lower queue_pairs, queue_depth or connections_max, or raise "
                           "`ulimit -l`");
  }
  QueuePair made(rail, pair, std::min(size.inline_bytes, got.cap.max_inline_data),
                 static_cast<uint32_t>(random_token()) & k24Bits);
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_INIT;
  attributes.port_num = route.port;
  attributes.qp_access_flags = IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE;
  const int rc = rail->verbs().modify_qp(
      pair, &attributes, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
  if (rc != 0) return rail->error(Code::kIo, "ibv_modify_qp to INIT", rc);
  return made;
}

Status QueuePair::connect(const RailRoute& route, const RailAddress& peer,
                          const PairAddress& peer_pair, bool asks) {
  const RdmaSettings& settings = rail_->settings();
  const uint16_t mtu = std::min(route.address.mtu, peer.mtu);
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_RTR;
  attributes.ah_attr = address_vector(route, peer, settings);
  attributes.path_mtu = mtu_code(mtu);
  attributes.dest_qp_num = peer_pair.number;
  attributes.rq_psn = peer_pair.psn;
  attributes.max_dest_rd_atomic = rail_->limits().reads_in;
  attributes.min_rnr_timer = kNoReceiverTimer;
  int rc = rail_->verbs().modify_qp(pair_, &attributes,
                                    IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
                                        IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
                                        IBV_QP_MIN_RNR_TIMER);
  if (rc != 0) {
    return rail_->error(Code::kUnavailable,
                        "ibv_modify_qp to RTR (to GID " + to_string(peer.gid) + ", MTU " +
                            std::to_string(mtu) + ")",
                        rc,
                        "is there a route from this port's address (" +
                            to_string(route.address.gid) + ") to that one?");
  }
  if (!asks) return Status();
  attributes = ibv_qp_attr{};
  attributes.qp_state = IBV_QPS_RTS;
  attributes.sq_psn = psn_;
  attributes.timeout = settings.ack_timeout;
  attributes.retry_cnt = settings.retry_count;
  attributes.rnr_retry = settings.retry_count;
  attributes.max_rd_atomic = std::max<uint8_t>(1, std::min(rail_->limits().reads_out, peer.reads));
  rc = rail_->verbs().modify_qp(pair_, &attributes,
                                IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
                                    IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC);
  if (rc != 0) return rail_->error(Code::kIo, "ibv_modify_qp to RTS", rc);
  return Status();
}

bool QueuePair::flush() {
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_ERR;
  return rail_->verbs().modify_qp(pair_, &attributes, IBV_QP_STATE) == 0;
}

bool QueuePair::destroy() {
  if (pair_ == nullptr) return true;
  if (rail_->verbs().destroy_qp(pair_) != 0) return false;
  pair_ = nullptr;
  return true;
}

uint32_t QueuePair::received_psn() const {
  ibv_qp_attr attributes{};
  ibv_qp_init_attr init{};
  return rail_->verbs().query_qp(pair_, &attributes, IBV_QP_RQ_PSN, &init) == 0 ? attributes.rq_psn
                                                                                : 0;
}

}  // namespace hicache
