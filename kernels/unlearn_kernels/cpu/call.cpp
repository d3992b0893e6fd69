#include "call.h"

#include <c10/util/Exception.h>


namespace unlearn {

void check(const Arguments& a) {
    const auto &x = a.x, &down = a.w_down, &up = a.w_up, &slots = a.slot_of_token;
    TORCH_CHECK_VALUE(x.dim() == 2, "x: expected shape (tokens, d), got ", x.sizes());
    TORCH_CHECK_VALUE(
        down.dim() == 3 && down.size(2) == x.size(1),
        "w_down: expected last dimension ", x.size(1), " as x, got shape ", down.sizes());
    const int64_t count = down.size(0), rank = down.size(1), d = down.size(2);
    TORCH_CHECK_VALUE(
        up.dim() == 3 && up.size(0) == count && up.size(1) == d && up.size(2) == rank,
        "w_up: expected shape (", count, ", ", d, ", ", rank, "), got ", up.sizes());
    TORCH_CHECK_VALUE(d % 8 == 0, "x: expected d to be a multiple of 8, got ", d);
    TORCH_CHECK_VALUE(
        x.dtype() == down.dtype() && x.dtype() == up.dtype(),
        "expected one dtype, got x ", x.dtype(), ", w_down ", down.dtype(), ", w_up ", up.dtype());
    TORCH_CHECK_VALUE(
        (slots.dim() == 1 || slots.dim() == 2) && slots.size(0) >= x.size(0),
        "slot_of_token: expected at least ", x.size(0), " rows, got shape ", slots.sizes());
    TORCH_CHECK_VALUE(
        slots.scalar_type() == at::kInt || slots.scalar_type() == at::kLong,
        "slot_of_token: expected int32 or int64, got ", slots.dtype());
    const auto check_per_slot = [&](const char* name, const at::Tensor& buffer) {
        TORCH_CHECK_VALUE(
            buffer.dim() == 1 && buffer.size(0) == count && buffer.scalar_type() == at::kInt,
            name, ": expected int32 of shape (", count, ",), got ", buffer.dtype(), " ", buffer.sizes());
    };
    check_per_slot("rank_of_slot", a.rank_of_slot);
    check_per_slot("activation_of_slot", a.activation_of_slot);
    if (!a.slot_of_route) return;
    const auto& routes = *a.slot_of_route;
    TORCH_CHECK_VALUE(
        routes.dim() == 1 && routes.size(0) > 0 && routes.scalar_type() == at::kInt,
        "slot_of_route: expected int32 of shape (routes + 1,), got ", routes.dtype(), " ", routes.sizes());
    TORCH_CHECK_VALUE(slots.dim() == 1, "slot_of_token: expected one route a token, got shape ", slots.sizes());
}

namespace {

template <class Index>
void resolve(const Arguments& a, int64_t tokens, int64_t sets, int64_t slot_count, int32_t* slot_of_pair) {
    const auto& routing = a.slot_of_token;
    const Index* from = routing.const_data_ptr<Index>();
    const int64_t token_stride = routing.stride(0), set_stride = routing.dim() == 2 ? routing.stride(1) : 0;
    const int32_t* route_table = a.slot_of_route ? a.slot_of_route->const_data_ptr<int32_t>() : nullptr;
    const int64_t route_stride = route_table ? a.slot_of_route->stride(0) : 0;
    const int64_t route_count = route_table ? a.slot_of_route->size(0) - 1 : 0;
    for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t k = 0; k < sets; ++k) {
            int64_t slot = from[t * token_stride + k * set_stride];
            if (route_table) {
                TORCH_CHECK_VALUE(
                    slot >= -1 && slot < route_count,
                    "slot_of_token: expected routes -1 to ", route_count - 1, ", got ", slot);
                slot = route_table[(slot + 1) * route_stride];
            }
            TORCH_CHECK_VALUE(
                slot >= -1 && slot < slot_count,
                route_table ? "slot_of_route" : "slot_of_token",
                ": expected slots -1 to ", slot_count - 1, ", got ", slot);
            slot_of_pair[t * sets + k] = static_cast<int32_t>(slot);
        }
    }
}

}  // namespace

void Groups::read(const Arguments& a) {
    tokens = a.x.size(0);
    sets = a.slot_of_token.dim() == 2 ? a.slot_of_token.size(1) : 1;
    const int64_t slot_count = a.w_down.size(0), pairs = tokens * sets;
    slot_of_pair.resize(pairs);
    if (a.slot_of_token.scalar_type() == at::kInt) {
        resolve<int32_t>(a, tokens, sets, slot_count, slot_of_pair.data());
    } else {
        resolve<int64_t>(a, tokens, sets, slot_count, slot_of_pair.data());
    }

    next_of_slot_.assign(slot_count, 0);
    for (const int32_t slot : slot_of_pair) {
        if (slot >= 0) ++next_of_slot_[slot];
    }
    groups.clear();
    int64_t begin = 0;
    for (int64_t slot = 0; slot < slot_count; ++slot) {
        const int64_t count = next_of_slot_[slot];
        if (!count) continue;
        const auto rank = a.rank_of_slot.const_data_ptr<int32_t>()[slot * a.rank_of_slot.stride(0)];
        const auto code = a.activation_of_slot.const_data_ptr<int32_t>()[slot * a.activation_of_slot.stride(0)];
        TORCH_CHECK_VALUE(
            rank >= 0 && rank <= a.w_down.size(1),
            "rank_of_slot: expected 0 to ", a.w_down.size(1), ", got ", rank, " for slot ", slot);
        if (!rank) continue;
        TORCH_CHECK_VALUE(
            code >= 0 && code <= 3, "activation_of_slot: expected 0 to 3, got ", code, " for slot ", slot);
        groups.push_back({static_cast<int32_t>(slot), rank, code, begin, begin + count});
        next_of_slot_[slot] = begin;
        begin += count;
    }
    // What is left of a count must not be taken for a place.
    for (int64_t slot = 0, group = 0; slot < slot_count; ++slot) {
        if (group < static_cast<int64_t>(groups.size()) && groups[group].slot == slot) {
            ++group;
        } else {
            next_of_slot_[slot] = -1;
        }
    }

    token_of_pair.resize(begin);
    place_of_pair.resize(pairs);
    for (int64_t pair = 0; pair < pairs; ++pair) {
        int32_t& slot = slot_of_pair[pair];
        if (slot >= 0 && next_of_slot_[slot] < 0) slot = -1;  // rank 0
        if (slot < 0) continue;
        const int64_t place = next_of_slot_[slot]++;
        token_of_pair[place] = static_cast<int32_t>(pair / sets);
        place_of_pair[pair] = static_cast<int32_t>(place);
    }
}

}  // namespace unlearn
