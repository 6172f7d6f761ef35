// Table sizes, in entries, in one place. A build for another target overrides
// them with -D: every table has a size because an unsized one holds 1,024
// entries on bmv2 and an unknown number elsewhere.
#ifndef COUNTERSIGN_SIZES_P4
#define COUNTERSIGN_SIZES_P4

#ifndef PORT_SIZE
#define PORT_SIZE 512
#endif
#ifndef CROSS_CONNECT_SIZE
#define CROSS_CONNECT_SIZE 512
#endif
#ifndef ISSUER_KEY_SIZE
#define ISSUER_KEY_SIZE 65536
#endif
#ifndef VOUCHED_SIZE
#define VOUCHED_SIZE 1048576
#endif
#ifndef ROUTE_SIZE
#define ROUTE_SIZE 65536
#endif
#ifndef NEXT_HOP_MEMBERS
#define NEXT_HOP_MEMBERS 65536
#endif
#ifndef NEXT_HOP_GROUP_SIZE
#define NEXT_HOP_GROUP_SIZE 64
#endif
#ifndef DELIVERED_SIZE
#define DELIVERED_SIZE 1048576
#endif
#ifndef SESSION_SIZE
#define SESSION_SIZE 4194304
#endif
#ifndef POLICY_SIZE
#define POLICY_SIZE 16384
#endif
#ifndef OWN_KEY_SIZE
#define OWN_KEY_SIZE 16
#endif
#ifndef OWN_TAG_SIZE
#define OWN_TAG_SIZE 1048576
#endif
#ifndef PUNT_SIZE
#define PUNT_SIZE 16384
#endif

// Not tables, but sized all the same.
#define PORT_COUNT 512
#define REASON_COUNT 256
#define OUTCOME_COUNT 16

#endif
