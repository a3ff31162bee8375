"""x"""
from tests.gateway.world import World, outcome, stages, kinds

async def test_first(world: World) -> None:
    """A"""
    worker = await world.worker()
    desk = await world.desk(worker)
    f = desk.follow()
    media = await f.media()
    print(kinds(f.events), outcome(media), stages(media.report.stages), media.cache_status)
    print(await desk.stored(media))
    m2 = await desk.animate()
    print(outcome(m2), m2.cache_status, m2.data == media.data)
    d2 = await world.desk(worker)
    m2 = await d2.animate()
    print(outcome(m2), m2.cache_status, m2.data == media.data)
    print([ (s.name, s.attributes) for s in desk.spans])
    print(worker.generations)
