package lifecycle

import (
	"crypto/rand"
	"strings"
)

// Names of containers that were given none: a weather and a thing of the sea.
const (
	weathers = "amber ample azure balmy bold brave bright brisk calm clear clever cool coral crisp deep eager early easy fair " +
		"fleet fond fresh full gentle glad golden grand great hale high honest jolly keen kind light lively lofty lucky mellow merry mild " +
		"nimble noble northern pearly placid proud quick quiet rapid ready royal salty serene sharp silent silver smooth southern " +
		"stately steady still sunny swift tidy tranquil true warm western wise"
	things = "anchor atoll barge bay beacon boom bow breeze brig buoy cape capstan cay clipper cove creek cutter deck delta dhow dock dolphin " +
		"dory ebb estuary fathom ferry fjord galley gale gannet gull gulf halyard harbor haven heron hull inlet island jetty jib keel ketch " +
		"lagoon lantern lateen lighthouse lugger marlin mast monsoon mooring oar osprey petrel pier pilot pinnace port prow quay reef rigging " +
		"rudder sail schooner seal shoal skiff sloop sound spar spray squall starboard stern strait tern tide tiller topsail trawler turtle " +
		"vessel wake wave wharf whale wherry yawl zephyr"
)

func randomName() string {
	return pick(weathers) + "_" + pick(things)
}

// pick is one of the words.
func pick(words string) string {
	list := strings.Fields(words)
	var b [2]byte
	rand.Read(b[:]) // never fails
	return list[(int(b[0])<<8|int(b[1]))%len(list)]
}
