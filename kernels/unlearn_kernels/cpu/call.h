// One call of the op: its arguments, checked, and its tokens grouped by slot.
//
// Shapes: T tokens, d hidden size, S slots, R the buffers' rank, K slots a token (1 where slot_of_token is 1-D).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace unlearn {

struct Arguments {
    const at::Tensor& x;              // [T, d]
    const at::Tensor& w_down;         // [S, R, d]
    const at::Tensor& w_up;           // [S, d, R]
    const at::Tensor& slot_of_token;  // int32 or int64 [>= T] or [>= T, K]
    const at::Tensor& rank_of_slot;   // int32 [S]
    const at::Tensor& activation_of_slot;
    const std::optional<at::Tensor>& slot_of_route;  // int32 [N + 1]
};

// Raises ValueError with the messages of op.py.
void check(const Arguments& a);

// Pairs of a token and one of its slots, sorted by slot; slots of rank 0 have none.
// Example: slots [2, -1, 0, 2], one a token: pairs 2 | 0 3 (tokens), groups {0: [0, 1), 2: [1, 3)}.
struct Groups {
    struct Group {
        int32_t slot, rank, activation;
        int64_t begin, end;  // in token_of_pair
    };
    int64_t tokens = 0;
    int64_t sets = 1;                    // K
    std::vector<int32_t> slot_of_pair;   // [T, K], -1 for none: the routing resolved
    std::vector<int32_t> token_of_pair;  // sorted by slot, then by token
    std::vector<int32_t> place_of_pair;  // [T, K], the place of that pair in token_of_pair
    std::vector<Group> groups;

    bool touches(int64_t token) const {
        bool any = false;
        for (int64_t k = 0; k < sets; ++k) any |= slot_of_pair[token * sets + k] >= 0;
        return any;
    }

    // Refills all of the above, keeping the memory. Raises ValueError for slots, ranks and codes out of range.
    void read(const Arguments& a);

private:
    std::vector<int64_t> next_of_slot_;
};

}  // namespace unlearn
