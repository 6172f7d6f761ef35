package engine

import "fmt"

// Reason is why a packet was punted (1 to 31) or dropped (32 and up; 24 is dropped
// with a copy); the index of the counters drops and punts.
type Reason uint8

// The members of Reason, as in the P4 program.
const (
	ReasonNone            Reason = 0
	ReasonNewSession      Reason = 1
	ReasonReplyUnknown    Reason = 2
	ReasonTagUnverified   Reason = 3
	ReasonTagUnsigned     Reason = 4
	ReasonFragment        Reason = 5
	ReasonTooBig          Reason = 6
	ReasonTTLExpired      Reason = 7
	ReasonICMPError       Reason = 8
	ReasonToMe            Reason = 9
	ReasonFirstSeen       Reason = 16
	ReasonTcpFlags        Reason = 17
	ReasonSynProof        Reason = 18
	ReasonSample          Reason = 19
	ReasonTagUnknownKey   Reason = 24
	ReasonUnknownPort     Reason = 32
	ReasonTruncated       Reason = 33
	ReasonVLANStacked     Reason = 34
	ReasonNotIP           Reason = 35
	ReasonIPVersion       Reason = 36
	ReasonBadLength       Reason = 37
	ReasonBadOptions      Reason = 38
	ReasonJumbogram       Reason = 39
	ReasonL4Truncated     Reason = 40
	ReasonBadChecksum     Reason = 41
	ReasonSourceRoute     Reason = 42
	ReasonUnreadableChain Reason = 43
	ReasonMartian         Reason = 44
	ReasonLinkScope       Reason = 45
	ReasonLAND            Reason = 46
	ReasonTagOnEdge       Reason = 64
	ReasonUntaggedOnTrunk Reason = 65
	ReasonTagMalformed    Reason = 66
	ReasonTagMisplaced    Reason = 67
	ReasonTagFragmented   Reason = 68
	ReasonTagRevoked      Reason = 69
	ReasonTagForged       Reason = 70
	ReasonTagReplayed     Reason = 71
	ReasonNoSigningKey    Reason = 72
	ReasonNoRoute         Reason = 96
	ReasonWrongZone       Reason = 97
	ReasonPolicyDeny      Reason = 98
	ReasonPolicyDefault   Reason = 99
	ReasonPuntLimited     Reason = 100
	ReasonPuntLoop        Reason = 101
	ReasonSourceGuard     Reason = 102
	ReasonBlocklist       Reason = 103
	ReasonMitigation      Reason = 104
	ReasonICMPUnproven    Reason = 105
	ReasonBadPacketOut    Reason = 106
)

// String is the name in the P4 program, in lower case.
func (v Reason) String() string {
	if s := reasonNames[v]; s != "" {
		return s
	}
	return fmt.Sprintf("reason(%d)", uint8(v))
}

var reasonNames = [256]string{
	ReasonNone:            "none",
	ReasonNewSession:      "new_session",
	ReasonReplyUnknown:    "reply_unknown",
	ReasonTagUnverified:   "tag_unverified",
	ReasonTagUnsigned:     "tag_unsigned",
	ReasonFragment:        "fragment",
	ReasonTooBig:          "too_big",
	ReasonTTLExpired:      "ttl_expired",
	ReasonICMPError:       "icmp_error",
	ReasonToMe:            "to_me",
	ReasonFirstSeen:       "first_seen",
	ReasonTcpFlags:        "tcp_flags",
	ReasonSynProof:        "syn_proof",
	ReasonSample:          "sample",
	ReasonTagUnknownKey:   "tag_unknown_key",
	ReasonUnknownPort:     "unknown_port",
	ReasonTruncated:       "truncated",
	ReasonVLANStacked:     "vlan_stacked",
	ReasonNotIP:           "not_ip",
	ReasonIPVersion:       "ip_version",
	ReasonBadLength:       "bad_length",
	ReasonBadOptions:      "bad_options",
	ReasonJumbogram:       "jumbogram",
	ReasonL4Truncated:     "l4_truncated",
	ReasonBadChecksum:     "bad_checksum",
	ReasonSourceRoute:     "source_route",
	ReasonUnreadableChain: "unreadable_chain",
	ReasonMartian:         "martian",
	ReasonLinkScope:       "link_scope",
	ReasonLAND:            "land",
	ReasonTagOnEdge:       "tag_on_edge",
	ReasonUntaggedOnTrunk: "untagged_on_trunk",
	ReasonTagMalformed:    "tag_malformed",
	ReasonTagMisplaced:    "tag_misplaced",
	ReasonTagFragmented:   "tag_fragmented",
	ReasonTagRevoked:      "tag_revoked",
	ReasonTagForged:       "tag_forged",
	ReasonTagReplayed:     "tag_replayed",
	ReasonNoSigningKey:    "no_signing_key",
	ReasonNoRoute:         "no_route",
	ReasonWrongZone:       "wrong_zone",
	ReasonPolicyDeny:      "policy_deny",
	ReasonPolicyDefault:   "policy_default",
	ReasonPuntLimited:     "punt_limited",
	ReasonPuntLoop:        "punt_loop",
	ReasonSourceGuard:     "source_guard",
	ReasonBlocklist:       "blocklist",
	ReasonMitigation:      "mitigation",
	ReasonICMPUnproven:    "icmp_unproven",
	ReasonBadPacketOut:    "bad_packet_out",
}

// Role is what is attached to a port.
type Role uint8

// The members of Role, as in the P4 program.
const (
	RoleNone  Role = 0
	RoleEdge  Role = 1
	RoleTrunk Role = 2
	RoleEcho  Role = 3
)

// KeyState is what a data plane has to tell apart of a key's states.
type KeyState uint8

// The members of KeyState, as in the P4 program.
const (
	KeyStateNone      KeyState = 0
	KeyStateAccepted  KeyState = 1
	KeyStateEchoOnly  KeyState = 2
	KeyStateTombstone KeyState = 3
)

// Outcome is what became of forwarded packets; the index of the counter outcomes.
type Outcome uint8

// The members of Outcome, as in the P4 program.
const (
	OutcomeForwardedPlain  Outcome = 0
	OutcomeTagged          Outcome = 1
	OutcomeRetagged        Outcome = 2
	OutcomeStripped        Outcome = 3
	OutcomeVerifiedSiphash Outcome = 4
	OutcomeVerifiedEd25519 Outcome = 5
	OutcomeVerifiedRsa2048 Outcome = 6
	OutcomeReturned        Outcome = 7
	OutcomeSentByCPU       Outcome = 8
	OutcomeMSSClamped      Outcome = 9
)

// PacketOutMode is what the CPU asks of a packet-out.
type PacketOutMode uint8

// The members of PacketOutMode, as in the P4 program.
const (
	PacketOutModeSend   PacketOutMode = 0
	PacketOutModeReturn PacketOutMode = 1
)
