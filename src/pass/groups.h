// Attention's heads in groups.
#pragma once
#include "ir/graph.h"

// Sets `groups` of every attention to the most that divides its KV heads and is at most `most` (1: none). In place, and as often
// as one likes; nothing else of the graph changes. What a rank does with its own heads: attention_groups.
void groups_set(Graph *g, Arena *a, int64_t most);
