//! The features of a GeoJSON file (RFC 7946), their outlines handed on as they are read.
//!
//! A file is a FeatureCollection, a bare list of features (CellViT, QuPath), one
//! feature, or several of these after each other. What kind of geometry coordinates
//! are follows from how deep they are nested, for `type` may come after them.

use std::path::Path;

use super::json::Json;
use crate::{Result, Watch};

/// Features within lists of features.
const DEEPEST: usize = 8;

/// What is known of a feature when it ends.
#[derive(Debug, Default)]
pub(super) struct Feature {
    /// Its class; empty: none.
    pub(super) class: String,
    /// All of its polygons are one cell (QuPath's cells and detections).
    pub(super) one_cell: bool,
    /// It is lines, or geometries within geometries.
    pub(super) no_cell: bool,
}

/// Who takes the outlines.
pub(super) trait Sink {
    /// A point of the feature at hand.
    fn point(&mut self, at: [f64; 2]);
    /// A polygon of the feature at hand: its corners, and where each ring of them ends.
    fn polygon(&mut self, points: &[[f64; 2]], ends: &[usize]);
    /// The feature ends.
    fn end(&mut self, feature: &Feature) -> Result<()>;
}

/// Reads all features of a file.
pub(super) fn read(path: &Path, property: &str, sink: &mut impl Sink, watch: &Watch) -> Result<()> {
    let mut reader = Reader {
        json: Json::open(path, watch)?,
        property,
        points: Vec::new(),
        ends: Vec::new(),
    };
    if reader.json.peek()?.is_none() {
        return Err(reader.json.fault("features"));
    }
    while reader.json.peek()?.is_some() {
        reader.features(sink, 0)?;
    }
    Ok(())
}

struct Reader<'a> {
    json: Json<'a>,
    property: &'a str,
    points: Vec<[f64; 2]>,
    ends: Vec<usize>,
}

impl Reader<'_> {
    /// A feature, a collection of them, or a list.
    fn features(&mut self, sink: &mut impl Sink, depth: usize) -> Result<()> {
        if depth > DEEPEST {
            return Err(self.json.fault("features"));
        }
        if self.json.peek()? == Some(b'[') {
            let mut more = self.json.opens(b'[', b']')?;
            while more {
                self.features(sink, depth + 1)?;
                more = self.json.more(b']')?;
            }
            return Ok(());
        }
        let (mut feature, mut is_feature) = (Feature::default(), false);
        let mut more = self.json.opens(b'{', b'}')?;
        while more {
            match &*self.json.key()? {
                "features" => self.features(sink, depth + 1)?,
                "geometry" => {
                    is_feature = true;
                    self.geometry(&mut feature, sink)?;
                }
                "properties" => self.properties(&mut feature)?,
                _ => self.json.skip(0)?,
            }
            more = self.json.more(b'}')?;
        }
        if is_feature {
            sink.end(&feature)
        } else {
            Ok(())
        }
    }

    fn geometry(&mut self, feature: &mut Feature, sink: &mut impl Sink) -> Result<()> {
        if self.json.peek()? != Some(b'{') {
            return self.json.skip(0);
        }
        let mut more = self.json.opens(b'{', b'}')?;
        while more {
            match &*self.json.key()? {
                "type" => {
                    let kind = self.json.text()?;
                    let cells = ["Point", "MultiPoint", "Polygon", "MultiPolygon"];
                    feature.no_cell |= !cells.contains(&&*kind);
                }
                "coordinates" => self.coordinates(sink)?,
                _ => self.json.skip(0)?,
            }
            more = self.json.more(b'}')?;
        }
        Ok(())
    }

    fn coordinates(&mut self, sink: &mut impl Sink) -> Result<()> {
        self.points.clear();
        self.ends.clear();
        let level = self.nested(sink, 0)?;
        if level == 1 || level == 2 {
            self.points.iter().for_each(|&at| sink.point(at));
        }
        Ok(())
    }

    /// Coordinates at some depth; how many lists deep they are: 1 a point, 2 a ring,
    /// 3 a polygon, 4 several; 0 for an empty list.
    fn nested(&mut self, sink: &mut impl Sink, depth: usize) -> Result<usize> {
        let mut more = self.json.opens(b'[', b']')?;
        if !more {
            return Ok(0);
        }
        if self.json.peek()? != Some(b'[') {
            return self.position().map(|()| 1);
        }
        if depth == 3 {
            return Err(self.json.fault("coordinates at most 4 lists deep"));
        }
        let mut inner = 0;
        while more {
            let found = self.nested(sink, depth + 1)?;
            if inner != 0 && found != 0 && found != inner {
                return Err(self.json.fault("coordinates of one kind"));
            }
            inner = inner.max(found);
            more = self.json.more(b']')?;
        }
        match inner {
            1 => self.ends.push(self.points.len()),
            2 => {
                sink.polygon(&self.points, &self.ends);
                self.points.clear();
                self.ends.clear();
            }
            _ => {}
        }
        Ok(if inner == 0 { 0 } else { inner + 1 })
    }

    /// The numbers of a point; what follows x and y is left.
    fn position(&mut self) -> Result<()> {
        let x = self.json.number()?;
        self.json.expect(b',')?;
        let y = self.json.number()?;
        while self.json.more(b']')? {
            self.json.number()?;
        }
        self.points.push([x, y]);
        Ok(())
    }

    fn properties(&mut self, feature: &mut Feature) -> Result<()> {
        if self.json.peek()? != Some(b'{') {
            return self.json.skip(0);
        }
        let mut more = self.json.opens(b'{', b'}')?;
        while more {
            let key = self.json.key()?;
            if key == self.property {
                feature.class = self.name()?;
            } else if key == "objectType" && self.json.peek()? == Some(b'"') {
                let kind = self.json.text()?;
                feature.one_cell = matches!(&*kind, "cell" | "detection");
            } else {
                self.json.skip(0)?;
            }
            more = self.json.more(b'}')?;
        }
        Ok(())
    }

    /// A class: a text, a number, or an object with a `name`.
    fn name(&mut self) -> Result<String> {
        match self.json.peek()? {
            Some(b'"') => self.json.text(),
            Some(b'{') => {
                let (mut name, mut more) = (String::new(), self.json.opens(b'{', b'}')?);
                while more {
                    if self.json.key()? == "name" && self.json.peek()? == Some(b'"') {
                        name = self.json.text()?;
                    } else {
                        self.json.skip(0)?;
                    }
                    more = self.json.more(b'}')?;
                }
                Ok(name)
            }
            Some(b'[') => self.json.skip(0).map(|()| String::new()),
            _ => Ok(Some(self.json.bare()?)
                .filter(|w| w != "null")
                .unwrap_or_default()),
        }
    }
}
