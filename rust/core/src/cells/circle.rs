//! Areas and centroids of polygons, and what of them lies in a circle.

/// Twice a shape's area, and its first moments.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moments {
    twice: f64,
    x: f64,
    y: f64,
    /// Sum and number of corners: the centroid of what has no area.
    corners: [f64; 3],
}

impl Moments {
    /// Of a polygon: the first ring, less the others, which are its holes.
    pub(super) fn of(points: &[[f64; 2]], ends: &[usize]) -> Self {
        let mut moments = Self::default();
        for (number, ring) in rings(points, ends).enumerate() {
            let (ring, sign) = (Self::of_ring(ring), if number == 0 { 1.0 } else { -1.0 });
            let sign = sign * ring.twice.signum();
            moments.twice += sign * ring.twice;
            moments.x += sign * ring.x;
            moments.y += sign * ring.y;
            if number == 0 {
                moments.corners = ring.corners;
            }
        }
        moments
    }

    /// Around its first corner, where numbers are small, then moved.
    fn of_ring(ring: &[[f64; 2]]) -> Self {
        let mut moments = Self::default();
        let Some(&[x0, y0]) = ring.first() else {
            return moments;
        };
        for (a, b) in edges(ring) {
            let (ax, ay, bx, by) = (a[0] - x0, a[1] - y0, b[0] - x0, b[1] - y0);
            let cross = ax * by - bx * ay;
            moments.twice += cross;
            moments.x += (ax + bx) * cross / 3.0;
            moments.y += (ay + by) * cross / 3.0;
            let [x, y, n] = moments.corners;
            moments.corners = [x + a[0], y + a[1], n + 1.0];
        }
        moments.x += x0 * moments.twice;
        moments.y += y0 * moments.twice;
        moments
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.twice += other.twice;
        self.x += other.x;
        self.y += other.y;
        for (sum, part) in self.corners.iter_mut().zip(other.corners) {
            *sum += part;
        }
    }

    pub(super) fn centroid(&self) -> [f64; 2] {
        if self.twice > 0.0 {
            return [self.x / self.twice, self.y / self.twice];
        }
        let [x, y, n] = self.corners;
        [x / n, y / n]
    }
}

fn rings<'a>(points: &'a [[f64; 2]], ends: &'a [usize]) -> impl Iterator<Item = &'a [[f64; 2]]> {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(ends).map(|(start, &end)| &points[start..end])
}

/// A ring's edges; that from its last corner back closes it where the file did not.
fn edges(ring: &[[f64; 2]]) -> impl Iterator<Item = ([f64; 2], [f64; 2])> + '_ {
    let next = ring.iter().cycle().skip(1);
    ring.iter().zip(next).map(|(&a, &b)| (a, b))
}

/// The area that a polygon and a circle share.
pub(super) fn overlap(points: &[[f64; 2]], ends: &[usize], center: [f64; 2], radius: f64) -> f64 {
    let mut total = 0.0;
    for (number, ring) in rings(points, ends).enumerate() {
        let moved = |p: [f64; 2]| [p[0] - center[0], p[1] - center[1]];
        let area: f64 = edges(ring)
            .map(|(a, b)| sector(moved(a), moved(b), radius))
            .sum();
        total += if number == 0 { area.abs() } else { -area.abs() };
    }
    total
}

/// The signed area that the circle around 0 shares with the triangle 0, a, b.
///
/// The edge is cut where it crosses the circle; what of it is inside gives a
/// triangle, what is outside a sector.
fn sector(a: [f64; 2], b: [f64; 2], radius: f64) -> f64 {
    let d = [b[0] - a[0], b[1] - a[1]];
    let (dd, ad) = (dot(d, d), dot(a, d));
    let inside = ad * ad - dd * (dot(a, a) - radius * radius);
    if dd == 0.0 {
        return 0.0;
    }
    if inside <= 0.0 {
        return wedge(a, b, radius);
    }
    let root = inside.sqrt();
    let (enter, leave) = ((-ad - root) / dd, (-ad + root) / dd);
    if enter >= 1.0 || leave <= 0.0 {
        return wedge(a, b, radius);
    }
    let at = |t: f64| [a[0] + t * d[0], a[1] + t * d[1]];
    let (first, last) = (at(enter.max(0.0)), at(leave.min(1.0)));
    let before = if enter > 0.0 {
        wedge(a, first, radius)
    } else {
        0.0
    };
    let after = if leave < 1.0 {
        wedge(last, b, radius)
    } else {
        0.0
    };
    before + cross(first, last) / 2.0 + after
}

/// The signed area of the circle's sector between two directions.
fn wedge(a: [f64; 2], b: [f64; 2], radius: f64) -> f64 {
    radius * radius * cross(a, b).atan2(dot(a, b)) / 2.0
}

fn cross(a: [f64; 2], b: [f64; 2]) -> f64 {
    a[0] * b[1] - a[1] * b[0]
}

fn dot(a: [f64; 2], b: [f64; 2]) -> f64 {
    a[0] * b[0] + a[1] * b[1]
}
