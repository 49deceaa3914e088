// The io_uring backend. Without liburing at build time all it can do is to say so.
#include <cerrno>
#include <system_error>

#include "engine.hpp"

#ifdef SHORTHAUL_WITH_LIBURING
#include <liburing.h>
#endif

namespace shorthaul::uring::detail {

#ifndef SHORTHAUL_WITH_LIBURING

std::unique_ptr<Engine> make_uring(unsigned, Refusal& refusal) {
  refusal = {ENOSYS, "built without liburing"};
  return nullptr;
}

#else

namespace {

std::string explained(int code) {
  std::string name = "errno " + std::to_string(code);
  if (code == EPERM) name = "EPERM";
  if (code == ENOSYS) name = "ENOSYS";
  if (code == EACCES) name = "EACCES";
  if (code == ENOMEM) name = "ENOMEM";
  const char* hint = code == EPERM || code == ENOSYS ? " (most containers refuse it)" : "";
  return name + ": io_uring_setup: " + std::generic_category().message(code) + hint;
}

bool accepted(int code, const char* what) {
  if (code >= 0) return true;
  for (const int limit : {ENOMEM, EMFILE, EPERM, EACCES, EOPNOTSUPP}) {
    if (code == -limit) return false;  // not worth failing for: a little slower without
  }
  throw std::system_error(-code, std::generic_category(),
                          std::string("io_uring_register: ") + what);
}

class UringEngine final : public Engine {
 public:
  explicit UringEngine(const io_uring& ring) : ring_(ring) {}
  ~UringEngine() override { io_uring_queue_exit(&ring_); }

  void push(const Transfer& transfer) override {
    const bool reads = transfer.operation == Operation::read;
    const bool fixed = transfer.buffer_index >= 0;
    const bool registered = transfer.file_index >= 0;
    const int opcode = transfer.operation == Operation::sync ? IORING_OP_FSYNC
                       : reads ? (fixed ? IORING_OP_READ_FIXED : IORING_OP_READ)
                               : (fixed ? IORING_OP_WRITE_FIXED : IORING_OP_WRITE);
    // There is always an entry: no more than `depth` requests are queued or in flight.
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    io_uring_prep_rw(opcode, sqe, registered ? transfer.file_index : transfer.fd, transfer.data,
                     static_cast<unsigned>(transfer.bytes), transfer.offset);
    if (fixed) sqe->buf_index = static_cast<std::uint16_t>(transfer.buffer_index);
    if (registered) sqe->flags = IOSQE_FIXED_FILE;
    if (opcode == IORING_OP_FSYNC) sqe->fsync_flags = IORING_FSYNC_DATASYNC;
    sqe->user_data = transfer.slot;
  }

  void exchange(std::size_t minimum, std::vector<Outcome>& out, Counters& counters) override {
    std::size_t got = reap(out);
    while (io_uring_sq_ready(&ring_) > 0 || got < minimum || (got == 0 && has_unposted())) {
      const std::size_t wait = got < minimum ? minimum - got : 0;
      ++counters.submits;
      counters.waits += wait > 0 ? 1 : 0;
      const int code = io_uring_submit_and_wait(&ring_, static_cast<unsigned>(wait));
      // Interrupted, or the kernel is short of memory for requests: come again.
      if (code < 0 && code != -EINTR && code != -EAGAIN && code != -EBUSY) {
        throw std::system_error(-code, std::generic_category(), "io_uring_enter");
      }
      got += reap(out);
    }
  }

  bool register_files(std::span<const int> fds) override {
    io_uring_unregister_files(&ring_);  // ENXIO when there are none
    const auto count = static_cast<unsigned>(fds.size());
    return count > 0 && accepted(io_uring_register_files(&ring_, fds.data(), count), "files");
  }

  bool register_buffers(std::span<const Bytes> buffers) override {
    io_uring_unregister_buffers(&ring_);
    std::vector<iovec> vectors;
    for (const Bytes& buffer : buffers) vectors.push_back({buffer.data(), buffer.size()});
    const auto count = static_cast<unsigned>(vectors.size());
    return count > 0 &&
           accepted(io_uring_register_buffers(&ring_, vectors.data(), count), "buffers");
  }

 private:
  // Completions that the kernel has ready and posts at the next system call.
  bool has_unposted() const {
    const unsigned flags = IO_URING_READ_ONCE(*ring_.sq.kflags);
    return (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
  }

  std::size_t reap(std::vector<Outcome>& out) {
    io_uring_cqe* cqe = nullptr;
    unsigned head = 0;
    unsigned got = 0;
    io_uring_for_each_cqe(&ring_, head, cqe) {
      out.push_back({static_cast<std::uint32_t>(cqe->user_data), cqe->res});
      ++got;
    }
    io_uring_cq_advance(&ring_, got);
    return got;
  }

  io_uring ring_;
};

}  // namespace

std::unique_ptr<Engine> make_uring(unsigned depth, Refusal& refusal) {
  io_uring ring{};
  // Completions wait for the owner's next call instead of interrupting its computation.
  io_uring_params params{};
  params.flags = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
  int code = io_uring_queue_init_params(depth, &ring, &params);
  if (code == -EINVAL) {  // Linux before 5.19
    params = {};
    code = io_uring_queue_init_params(depth, &ring, &params);
  }
  if (code == 0 && (params.features & IORING_FEAT_RW_CUR_POS) == 0) {
    io_uring_queue_exit(&ring);
    code = -ENOSYS;  // Linux before 5.6 has rings, but not the plain read and write
  }
  if (code == 0) return std::make_unique<UringEngine>(ring);
  refusal = {-code, explained(-code)};
  return nullptr;
}

#endif

}  // namespace shorthaul::uring::detail
